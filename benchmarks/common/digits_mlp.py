"""scikit-learn's digits as vectors, and a network with one hidden layer: runs of seconds."""

from functools import cache

import torch
from torch import Tensor, nn


@cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Return pixels (1797, 64) between 0 and 1, and labels (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def make_mlp(hidden: int) -> nn.Module:
    """Return the network with fresh weights."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
