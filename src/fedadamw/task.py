"""What an engine needs of data and loss: the edge between federated learning and everything else."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]  # each (n, ...), one row a sample
Model = Callable[..., Any]  # a module, or one with parameters of the engine's choice


class Evaluation(NamedTuple):
    """The held-out set's result; metrics: by name, the main one first, which is a number whatever the model says,
    better when higher, and at most 1.
    """

    loss: float
    metrics: Mapping[str, float]


class Task(Protocol):
    """A learning problem over numbered samples. What is done to a sample never depends on the others of its batch, so
    that engines may put batches of many clients into one.
    """

    @property
    def resident(self) -> bool:
        """Whether the samples are on the model's device. Else `batch` takes time: it is called in a thread, ahead of
        the steps, with sample numbers and draws on the CPU.
        """

    @property
    def lengths(self) -> Tensor | None:
        """How long each training sample is, (n,) on the CPU, where that differs; batches are padded to the longest."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """All that is random about `count` training samples, (count, r) on the CPU; r may be 0."""

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """The training samples of these numbers (n,), augmented as `drawn` (n, r) says, on the model's device."""

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """The loss of `model` on each sample of a batch, differentiable, (n,)."""

    @property
    def held_out(self) -> int:
        """How many samples are held out."""

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """What `score` needs of each held-out sample from `start` to `stop`, (stop - start, c); deterministic."""

    def score(self, outputs: Tensor) -> Evaluation:
        """Loss and metrics from the outputs (held_out, c) of all held-out samples."""
