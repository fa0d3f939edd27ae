"""The task of a model, data and functions that are given in Python."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fedadamw.api.rows import Rows
from fedadamw.data.sums import Losses, Pooled
from fedadamw.task import Batch, Evaluation, Model
from fedadamw.validation import InputError, check, shorten

Loss = Callable[..., Tensor]  # (outputs, targets, reduction="none") -> (n,) or (n, ...)
SampleLosses = Callable[[Model, Any], Tensor]  # (model, batch) -> (n,)
Predict = Callable[[Model, Any], tuple[Tensor, Tensor]]  # (model, batch) -> outputs (n, ...), targets (n, ...)
Metric = Callable[[Tensor, Tensor], Any]  # all outputs and targets of the held-out set -> a number


class Functions(NamedTuple):
    """How a model is trained and scored on a batch as the data gives it."""

    loss: Loss | None  # of outputs and targets; None if sample_losses are given
    sample_losses: SampleLosses | None
    predict: Predict | None  # None: a batch is (inputs..., targets)
    metrics: Mapping[str, Metric]

    def on(self, device: torch.device) -> "Functions":
        """Return the same functions, a loss module's tensors on `device`."""
        return self._replace(loss=copy.deepcopy(self.loss).to(device)) if isinstance(self.loss, nn.Module) else self

    def losses_of(self, model: Model, batch: Any) -> Tensor:
        """Return the loss of each sample, (n,)."""
        if self.sample_losses is not None:
            return self.sample_losses(model, batch)
        return self.compare(*self.predictions(model, batch))

    def compare(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each output, (n,): the mean if a sample has several."""
        assert self.loss is not None
        losses = self.loss(outputs, targets, reduction="none")
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            _check_not_broadcast(outputs.shape, targets.shape, losses.shape)
        return losses.flatten(1).mean(1) if losses.dim() > 1 else losses

    def predictions(self, model: Model, batch: Any) -> tuple[Tensor, Tensor]:
        """Return outputs and targets of a batch."""
        if self.predict is not None:
            return self.predict(model, batch)
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            raise InputError(
                f"a batch is a {type(batch).__name__}, not (inputs, targets): give sample_losses=(model, batch) -> "
                "(n,), and predict=(model, batch) -> (outputs, targets) for metrics"
            )
        *inputs, targets = batch
        outputs = model(*inputs)
        if not isinstance(outputs, Tensor):
            given, outputs = type(outputs).__name__, getattr(outputs, "logits", None)
            check(outputs is not None, f"the model returns a {given}, not a tensor: give predict=, or sample_losses=")
        return outputs, targets


def check_functions(
    loss: Loss | None, sample_losses: SampleLosses | None, predict: Predict | None, metrics: Mapping[str, Metric] | None
) -> Functions:
    """Return the functions of a task; raises InputError if they do not go together."""
    check(loss is None or sample_losses is None, "give loss or sample_losses, not both")
    check(isinstance(metrics or {}, Mapping), f"metrics: {shorten(metrics)} is no dict; give {{'name': function}}")
    metrics = dict(metrics or {})
    for name, metric in metrics.items():
        check(isinstance(name, str) and callable(metric), f"metrics: {shorten(name)} is not a name with a function")
    needs_predict = sample_losses is not None and metrics and predict is None
    check(not needs_predict, "metrics with sample_losses need predict=(model, batch) -> (outputs, targets)")
    if sample_losses is None:
        loss = nn.functional.cross_entropy if loss is None else _without_reduction(loss)
    return Functions(loss, sample_losses, predict, metrics)


def _without_reduction(loss: Loss) -> Loss:
    """Return a loss that can be called with reduction="none"; raises InputError if `loss` cannot."""
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        return _Unreduced(loss)
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(None, None, reduction="none")
    except TypeError:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise InputError(
            f"loss={name} does not take (outputs, targets, reduction='none'); give sample_losses=(model, batch) -> (n,)"
        ) from None
    except ValueError:
        pass  # a function of C, whose arguments are not known
    return loss


def _check_not_broadcast(outputs: torch.Size, targets: torch.Size, losses: torch.Size) -> None:
    """Raise InputError if losses of these shapes compare every output with the targets of other samples."""
    try:
        every = torch.broadcast_shapes(outputs, targets)
    except RuntimeError:
        return
    shapes = f"outputs {tuple(outputs)} and targets {tuple(targets)}"
    crossed = losses == every and losses not in (outputs, targets)
    check(not crossed, f"loss: {shapes} were compared across samples, {tuple(losses)}; give them one shape")


class _Unreduced(nn.Module):
    """A loss of torch.nn with a number for each output, called as a function."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        inner: Any = copy.copy(loss)
        inner.reduction = "none"
        self.loss = inner

    def forward(self, outputs: Tensor, targets: Tensor, *, reduction: str) -> Tensor:
        """Return the loss of each output."""
        result: Tensor = self.loss(outputs, targets)
        return result


class PythonTask(Pooled):
    """What is learned from rows by functions; a `task.Task`.

    An engine's batch is the tensors of the user's batch in a tuple. A sample's outputs, targets and loss become one
    row of float64, in which they are exact and can be summed over ranks.
    """

    lengths = None

    def __init__(self, train: Rows, test: Rows, functions: Functions, test_batch_size: int) -> None:
        self.train, self.test, self.functions, self.test_batch_size = train, test, functions, test_batch_size
        self.kind = Losses(tuple(functions.metrics))  # a function of all outputs may be no function of sums
        self._structure: TreeSpec | None = None  # of a batch, once one was read
        self._row: _Row | None = None  # of the held-out outputs, once they were computed

    @property
    def resident(self) -> bool:
        """Whether the training samples are on the model's device."""
        return self.train.resident

    @property
    def in_turn(self) -> bool:
        """Whether the training samples are read in the main thread."""
        return self.train.in_turn

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw a seed for each training sample, (count, 1); (count, 0) if reading draws nothing."""
        if not self.train.has_seeds:
            return torch.zeros(count, 0)
        return torch.randint(2**31, (count, 1), generator=generator)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Return the tensors of the batch of these samples (n,)."""
        batch = self.train.take(samples, drawn[:, 0] if self.train.has_seeds else None)
        leaves, structure = tree_flatten(batch)
        if self._structure is None:
            _check_batch(leaves, len(samples))
            self._structure = structure
        check(
            structure == self._structure, "train: a batch has other parts than an earlier one; all must have the same"
        )
        return tuple(leaves)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the loss of each sample, (n,)."""
        assert self._structure is not None
        losses = self.functions.losses_of(model, tree_unflatten(list(batch), self._structure))
        if losses.shape != batch[0].shape[:1]:
            raise InputError(
                f"the loss of {len(batch[0])} samples has shape {tuple(losses.shape)}, not one number each"
            )
        return losses

    @property
    def held_out(self) -> int:
        """The number of held-out samples."""
        return len(self.test)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return loss, outputs and targets of held-out samples as float64, (stop - start, c)."""
        return self._evaluate(model, self.test, torch.arange(start, stop))

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        """Return the same of training samples, (n, c). What a dataset draws at random depends on a sample's number."""
        return self._evaluate(model, self.train, samples)

    def _evaluate(self, model: Model, rows: Rows, samples: Tensor) -> Tensor:
        parts = [self._evaluate_batch(model, rows.take(part)) for part in samples.split(self.test_batch_size)]
        widths = {part.shape[1] for part in parts}
        check(len(widths) == 1, f"outputs of held-out batches differ in size ({widths}): predict must give one shape")
        return torch.cat(parts)

    def _evaluate_batch(self, model: Model, batch: Any) -> Tensor:
        functions = self.functions
        if functions.sample_losses is not None:
            losses = functions.sample_losses(model, batch)
            pair = functions.predictions(model, batch) if functions.metrics else ()
        else:
            pair = functions.predictions(model, batch)
            losses = functions.compare(*pair)
        shown = pair if functions.metrics else ()
        _check_shown(shown, len(losses))
        self._row = _Row.of(shown)
        return torch.cat([losses.double()[:, None], *(t.double().reshape(len(t), -1) for t in shown)], 1)

    def score(self, outputs: Tensor) -> Evaluation:
        """Compute the mean loss and the metrics from what `outputs` gave for all held-out samples."""
        assert self._row is not None
        pair = self._row.split(outputs[:, 1:])
        scores = {name: _to_number(name, metric(*pair)) for name, metric in self.functions.metrics.items()}
        return Evaluation(outputs[:, 0].mean().item(), scores)


class _Row(NamedTuple):
    """Shapes and types of what a sample's row of numbers holds."""

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @staticmethod
    def of(tensors: tuple[Tensor, ...]) -> "_Row":
        return _Row(tuple(t.shape[1:] for t in tensors), tuple(t.dtype for t in tensors))

    def split(self, rows: Tensor) -> list[Tensor]:
        """Return the tensors whose rows were put side by side in `rows` (n, c)."""
        parts = rows.split([shape.numel() for shape in self.shapes], 1) if self.shapes else ()
        return [
            part.reshape(len(rows), *shape).to(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]


def _check_batch(leaves: list[Any], count: int) -> None:
    """Raise InputError unless a batch of `count` samples is tensors with that many rows."""
    for leaf in leaves:
        check(isinstance(leaf, Tensor), f"train: a batch holds {shorten(leaf)}: only tensors; give collate=")
        rows = leaf.shape[0] if leaf.dim() else 0
        check(rows == count, f"train: a batch of {count} samples holds a tensor of shape {tuple(leaf.shape)}")
    check(bool(leaves), "train: a batch holds no tensor")


def _check_shown(shown: Sequence[Any], count: int) -> None:
    """Raise InputError unless outputs and targets for metrics are tensors with `count` rows."""
    for what, part in zip(("outputs", "targets"), shown, strict=False):
        check(isinstance(part, Tensor), f"test: {what} are a {type(part).__name__}, not a tensor; metrics take tensors")
        rows = f"test: {what} of {count} samples have shape {tuple(part.shape)}; metrics take a row for each sample"
        check(part.shape[:1] == (count,), rows)


def _to_number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shorten(value)
        raise InputError(f"metrics: {name!r} gave {shown}, not a number") from None
