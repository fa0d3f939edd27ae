"""The interface between engines and learning problems: data, loss and evaluation."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]  # each (n, ...), one row per sample
Model = Callable[..., Any]  # a module, or a function that calls it with the engine's parameters


class Evaluation(NamedTuple):
    """Result on the held-out set.

    metrics: by name, the main one first. The main one is always a number, at most 1, and higher is better.
    """

    loss: float
    metrics: Mapping[str, float]


class Task(Protocol):
    """A learning problem over numbered samples.

    The processing of a sample never depends on the others in its batch, so engines may merge batches of many clients.
    A task may have `in_turn = True`: its `batch` is then called between the steps, never in a thread.
    """

    @property
    def resident(self) -> bool:
        """Whether the samples are on the model's device.

        If not, `batch` is called in a thread, ahead of the steps, unless it is `in_turn`, and with sample numbers and
        draws on the CPU: to look at a number on the device is to wait for all steps before.
        """

    @property
    def lengths(self) -> Tensor | None:
        """Length of each training sample, (n,) on the CPU; None if all are equal. Batches are padded to the longest."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers for `count` training samples, (count, r) on the CPU; r may be 0."""

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Return the training samples with these numbers (n,), augmented by `drawn` (n, r), on the model's device."""

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the loss of `model` on each sample of a batch, (n,), differentiable."""

    @property
    def held_out(self) -> int:
        """The number of held-out samples."""

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return the outputs for `score` of held-out samples `start` to `stop`, (stop - start, c); deterministic."""

    def score(self, outputs: Tensor) -> Evaluation:
        """Compute loss and metrics from the outputs (held_out, c) of all held-out samples."""

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        """Return what `outputs` does of the training samples with these numbers (n,), on the CPU; not augmented."""

    def sums(self, outputs: Tensor) -> Tensor:
        """Return sums over the samples of `outputs` (n, c) that add up over parts of a set, (k,) float64 on the CPU.

        The first is the number of samples. They tell nothing of a single sample, unless there is only one.
        """

    def pool(self, sums: Tensor) -> Evaluation:
        """Compute loss and metrics from (added) sums: those of `score`, without the `unpooled` ones."""

    def check_sums(self, sums: Tensor, most: int | None) -> None:
        """Raise InputError if no set of samples, of at most `most`, has these sums."""

    @property
    def unpooled(self) -> tuple[str, ...]:
        """The metrics that cannot be computed from sums."""


def copy_to(t: Tensor, device: torch.device) -> Tensor:
    """Return `t` on the device; a copy to a GPU is from pinned memory, so that it does not wait for the steps there."""
    if device.type == "cuda" and t.device.type == "cpu" and t.layout == torch.strided:
        return t.pin_memory().to(device, non_blocking=True)
    return t.to(device)
