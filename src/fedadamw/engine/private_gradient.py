"""Differential privacy of samples: the gradient of a batch in which no sample has more than its share, with noise.

    G_j = gradient of sample j's loss, all trainable numbers;  G_j = G_j min(1, C / |G_j|)                        1
    g = (sum of G_j + sigma C N(0, I)) / B                                                                        2

B is the nominal size of a batch, whatever its real one; batches are drawn by `draw_poisson_batches` and may be empty,
which leaves the noise. A sample whose gradient is not finite counts as 0: it must not move the sum by more than C
either. So one sample more or less moves the sum by at most C.

The noise is a sum of several Gaussians, so that the rounding of a single one cannot be read from it. That is all that
is done about rounding: guarantees are those of real numbers, and torch's generators are not cryptographic ones.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedadamw.engine.device_memory import is_out_of_memory
from fedadamw.engine.layer_gradients import LayerGradients
from fedadamw.engine.summands import Rows, Summand
from fedadamw.engine.vmap_rules import differentiable_kernels
from fedadamw.engine.workspace import Workspace, autocast, micro_batches, mixes_samples
from fedadamw.randomness import Entropy, Purpose, add_noise
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.validation import InputError, check
from fedadamw.vector import Vector

AT_ONCE = 2**26  # numbers of all samples' gradients that are in memory together, if micro_batch is not set


@dataclass(frozen=True)
class SamplePrivacy:
    """How the gradients of a run's samples are clipped and noised."""

    clip: float  # C, the largest norm of a sample's gradient
    noise_multiplier: float  # sigma; the noise has the standard deviation sigma C in each coordinate of the sum
    batch_size: int  # B, nominal
    entropy: Entropy

    @property
    def phi(self) -> float:
        """The variance of the noise in each coordinate of a step's gradient."""
        return (self.noise_multiplier * self.clip / self.batch_size) ** 2

    def rate(self, samples: int) -> float:
        """Return the probability with which each of a client's samples is in a batch."""
        return min(1.0, self.batch_size / max(samples, 1))

    def noise(self, round_: int, client: int, device: torch.device) -> torch.Generator:
        """Return what a client's noise of a round is drawn from."""
        return self.entropy.torch(Purpose.PRIVATE_NOISE, round_, client, device=device)

    def finish(self, total: Vector, generator: torch.Generator) -> None:
        """Make of a sum of clipped gradients (d,) the gradient of a step, in place: line 2."""
        add_noise(total, self.noise_multiplier * self.clip, generator)
        total /= self.batch_size


def check_separate(module: nn.Module) -> None:
    """Raise InputError if a sample's loss depends on the others of its batch, or on those before."""
    check(
        not mixes_samples(module),
        "BatchNorm mixes samples, and keeps what it saw of them without noise: take a model with LayerNorm or "
        "GroupNorm with privacy.unit=sample",
    )


@contextmanager
def refuse_changes(module: nn.Module) -> Iterator[None]:
    """A context after which InputError is raised if a buffer of the module has changed, as running statistics do."""
    buffers = [(name, b, b._version) for name, b in module.named_buffers()]
    yield
    after = dict(module.named_buffers())
    changed = next((name for name, b, version in buffers if after.get(name) is not b or b._version != version), None)
    check(changed is None, f"{changed!r} changes while the model trains, by samples and without noise: freeze it")


class SampleGradients:
    """Sums the clipped gradients of samples, of one client's model or of stacked ones.

    The samples of a chunk go through the model together: each has a gradient of its own from a plain backward
    (layer_gradients.py), or by vmap. A model that takes neither has them one after the other.
    """

    def __init__(self, workspace: Workspace, task: Task, training: TrainingSettings, privacy: SamplePrivacy) -> None:
        check_separate(workspace.module)
        self.workspace, self.task, self.training, self.privacy = workspace, task, training, privacy
        self.has_numbers = True  # a rehearsal's tensors have none
        self._singly = training.gradient_checkpointing  # torch's checkpoints know no vmap
        self._by_layers, self._tried = LayerGradients.of(workspace, task, training), False

    def fill(self, batch: Batch) -> None:
        """Make the workspace's gradient the sum over a batch, whose tensors may be none at all: line 1."""
        workspace = self.workspace
        total = torch.zeros_like(workspace.y)
        with refuse_changes(workspace.module):
            if batch and not self._singly:
                self._singly = not self._try_together(batch, total)
            if batch and self._singly:
                total.zero_()
                self._add_singly(batch, total)
        workspace.gradient.copy_(total)

    def _try_together(self, batch: Batch, total: Vector) -> bool:
        """Add to `total` the sum over a batch; returns False if the model's code does not take vmap."""
        try:
            for part in micro_batches(batch, self._chunk()):
                self._add(self._take(part), total)
        except InputError:
            raise
        except Exception as error:  # of vmap, or of model code that sees unexpected tensors
            if is_out_of_memory(error) or str(error).startswith("CUDA error:"):
                raise
            why = (str(error) or type(error).__name__).splitlines()[0].split(". ", 1)[0]
            warnings.warn(
                f"this model has no gradients of many samples at once ({why}): they are computed one after the other",
                stacklevel=2,
            )
            return False
        return True

    def _take(self, batch: Batch) -> Mapping[str, Summand]:
        """Return the gradients of a batch's samples by parameter, layer by layer if the model takes that.

        Of one sample alone the rows of layers do not tell whether they are samples.
        """
        if len(batch[0]) > 1 and not self._tried:
            self._try_layers(batch)
        if len(batch[0]) > 1 and self._by_layers is not None:
            return self._by_layers.take(batch)
        return to_rows(self._of_client(self.workspace.layout.views(self.workspace.y), {}, batch), 0)

    def _try_layers(self, batch: Batch) -> None:
        """Find out whether the model's gradients may be taken by layers.

        It must take vmap, too, which refuses code that looks at numbers: of a batch, they would be those of others.
        """
        self._tried = True
        try:
            if self._by_layers is not None and self.has_numbers:
                device = self.workspace.y.device
                with torch.random.fork_rng([device] if device.type == "cuda" else []):
                    self._of_client(self.workspace.layout.views(self.workspace.y), {}, tuple(t[:2] for t in batch))
            if self._by_layers is not None and not (self.has_numbers and self._by_layers.agrees(batch)):
                self._by_layers = None
        except Exception as error:  # of model code that sees unexpected tensors
            if is_out_of_memory(error) or str(error).startswith("CUDA error:"):
                raise
            self._by_layers = None

    def _add_singly(self, batch: Batch, total: Vector) -> None:
        """Add to `total` the sum over a batch, whose samples go through the model one after the other."""
        workspace = self.workspace
        for row in range(len(batch[0])):
            workspace.gradient.zero_()
            with autocast(self.training, workspace.y.device):
                loss = self.task.losses(workspace.module, tuple(t[row : row + 1] for t in batch)).sum()
            loss.backward()
            self._add({"": Rows(workspace.gradient[None])}, total)

    def sum_stacked(self, y: Vector, buffers: dict[str, Tensor], batch: Batch, real: Tensor) -> Vector:
        """Return the sum (active, d) over each stacked client's batch, at its model of `y` (active, d): line 1.

        batch: tensors (active, n, ...); real: which of the samples (active, n) are no padding.
        """
        total = torch.zeros_like(y)
        parameters = self.workspace.layout.views(y)
        if not batch:
            return total
        if self._singly:
            with refuse_changes(self.workspace.module):
                for client, (own, out) in enumerate(zip(y, total, strict=True)):
                    self.workspace.y.copy_(own)
                    self._add_singly(tuple(t[client][real[client]] for t in batch), out)
            return total
        for *part, own in micro_batches((*batch, real), self._chunk(len(y)), dim=1):
            with self._kernels():
                gradients = vmap(self._of_client, randomness="different")(parameters, buffers, tuple(part))
            self._add(to_rows(gradients, 1), total, own)
        return total

    def _chunk(self, clients: int = 1) -> int:
        """Return how many samples of each client go through the model at once."""
        return self.training.micro_batch or max(1, AT_ONCE // (clients * max(self.workspace.layout.d, 1)))

    def _of_client(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of each sample of a batch, (n, *shape) by name."""

        def loss(parameters: dict[str, Tensor], sample: Batch) -> Tensor:
            def model(*args: Any, **kwargs: Any) -> Any:
                return functional_call(self.workspace.module, (parameters, buffers), args, kwargs)

            return self.task.losses(model, tuple(t[None] for t in sample)).sum()

        with self._kernels():
            gradients: dict[str, Tensor] = vmap(grad(loss), (None, 0), randomness="different")(parameters, batch)
        return gradients

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        with differentiable_kernels(), autocast(self.training, self.workspace.y.device):
            yield

    def _add(self, gradients: Mapping[str, Summand], total: Vector, real: Tensor | None = None) -> None:
        """Add the clipped gradients of samples (..., n) to `total` (..., d); those that are not `real` count as 0."""
        if not gradients:  # the loss depends on no parameter
            return
        norms = torch.stack([g.squares() for g in gradients.values()]).sum(0).sqrt().to(total)
        counts = norms.isfinite() if real is None else norms.isfinite() & real
        scale = torch.where(counts, (self.privacy.clip / norms).clamp(max=1.0), 0.0)
        wrong = None if not self.has_numbers or bool(counts.all()) else ~counts
        layout = self.workspace.layout
        places = {"": total, **dict(zip(layout.names, total.split(layout.sizes, -1), strict=True))}
        for name, g in gradients.items():
            (g if wrong is None else g.without(wrong)).add_to(places[name], scale)


def to_rows(gradients: Mapping[str, Tensor], axes: int) -> dict[str, Summand]:
    """Return gradients (*axes, n, *shape) as rows."""
    return {
        name: Rows(g.detach().flatten(axes + 1) if g.dim() > axes + 1 else g.detach()[..., None])
        for name, g in gradients.items()
    }
