"""The Gauss-Newton matrix exactly, as rows J with J^T J = n times the matrix: c rows for each of n samples.

A row is that of A_i J_i, with the Jacobian J_i of a sample's c outputs and A_i^T A_i the Hessian of its loss in these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from fedadamw.task import Batch
from fedadamw.theory.curvature.products import differentiable_twice, root_of_output_hessian, with_parameters
from fedadamw.theory.curvature.subject import Subject, check_finite, predict, predicts_numbers
from fedadamw.validation import InputError
from fedadamw.vector import Layout, trainable

LIMIT_BYTES = 2 * 10**9  # of the rows that are held at once
SAMPLES_AT_ONCE = 8  # that go through vmap together: their backward passes keep c times the activations
OnStep = Callable[[int], None]  # called with how much is done


def count_outputs(subject: Subject, batch: Batch) -> int:
    """Return the number c of a sample's outputs."""
    with torch.no_grad():
        return predict(subject.task, subject.model, tuple(t[:1] for t in batch)).shape[-1]


def row_bytes(subject: Subject, rows: int) -> int:
    """Return the bytes of so many rows for all trainable parameters."""
    parameters = trainable(subject.model).values()
    return rows * sum(p.numel() * p.element_size() for p in parameters)


def jacobian(subject: Subject, batches: Sequence[Batch], names: Sequence[str], on_step: OnStep) -> Tensor:
    """Return the rows (n c, d) of the parameters `names`, in this order; `on_step` gets the samples done.

    Raises InputError if torch cannot differentiate the model for many samples at once, or a number is not finite.
    """
    chosen = {name: p.detach() for name, p in trainable(subject.model).items() if name in names}
    layout = Layout.of_tensors({name: chosen[name] for name in names})
    task, numbers = subject.task, predicts_numbers(subject.task)

    def rows_of(values: dict[str, Tensor], sample: Batch) -> Tensor:
        z = predict(task, with_parameters(subject, values), tuple(t.unsqueeze(0) for t in sample))[0]
        return root_of_output_hessian(z.detach(), numbers=numbers) @ z

    parts, done = [], 0
    for batch in batches:
        for few in zip(*(t.split(SAMPLES_AT_ONCE) for t in batch), strict=True):
            try:
                with differentiable_twice(), torch.no_grad():
                    found = vmap(jacrev(rows_of), in_dims=(None, 0))(chosen, few)
            except RuntimeError as error:
                raise _as_input_error(error) from error
            part = torch.cat([found[name].flatten(2) for name in layout.names], -1).flatten(0, 1)
            check_finite(part)
            parts.append(part)
            done += len(few[0])
            on_step(done)
    return torch.cat(parts)


def _as_input_error(error: RuntimeError) -> Exception:
    """Return what to raise for an error under vmap: a full memory stays what it is."""
    if "memory" in str(error):
        return error
    reason = str(error).strip().splitlines()[0]
    return InputError(f"torch cannot take this model's Jacobian for several samples at once ({reason})")


def iter_groups(parameters: Mapping[str, Tensor], names: Sequence[str], rows: int, width: int) -> Iterator[list[str]]:
    """Yield `names` in groups whose rows, of numbers of `width` bytes, take at most LIMIT_BYTES; one at least."""
    group: list[str] = []
    for name in names:
        if group and rows * width * sum(parameters[n].numel() for n in [*group, name]) > LIMIT_BYTES:
            yield group
            group = []
        group.append(name)
    if group:
        yield group
