"""Averages of tuples of tensors, one tuple a client."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from fedadamw.engine.ranks import ALONE, Team


class Average(Protocol):
    """Makes one tuple of tensors of many."""

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        """Add the tensors of one client; with weight 0 they change nothing."""

    def sum_over_ranks(self, *counts: int) -> list[int]:
        """Add what the other ranks have added; returns the sums of `counts` over all ranks."""

    def result(self) -> list[Tensor]:
        """The average of each tensor."""


class Mean:
    """A running weighted mean: its memory does not grow with the number of clients."""

    def __init__(self, ranks: Team = ALONE) -> None:
        self.ranks = ranks
        self.total: list[Tensor] | None = None
        self.weight = 0.0

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        if self.total is None:
            self.total = [weight * t for t in tensors]
        else:
            for total, t in zip(self.total, tensors, strict=True):
                total.add_(t, alpha=weight)
        self.weight += weight

    def sum_over_ranks(self, *counts: int) -> list[int]:
        if self.ranks.size == 1:
            return list(counts)
        assert self.total is not None
        numbers = torch.tensor([self.weight, *counts], dtype=torch.float64, device=self.total[0].device)
        self.ranks.sum([*self.total, numbers])
        self.weight, *summed = numbers.tolist()
        return [round(n) for n in summed]

    def result(self) -> list[Tensor]:
        assert self.total is not None
        return [total / self.weight for total in self.total]
