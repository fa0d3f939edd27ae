"""What an engine needs of data and loss: the edge between federated learning and everything else."""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


class Evaluation(NamedTuple):
    """The held-out set's result."""

    loss: float
    accuracy: float


class Task(Protocol):
    """A learning problem over numbered samples; samples are given to clients as index arrays."""

    def batch(self, samples: np.ndarray, generator: torch.Generator) -> Batch:
        """The training samples (n,), augmented with `generator`, as tensors on the model's device."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of `model` on a batch, differentiable, ()."""

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Loss and accuracy on the held-out set; deterministic."""
