"""The batches of stacked clients, padded to one size."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.engine.client import LocalWork
from fedadamw.task import Batch, Task


class Plan(NamedTuple):
    """The batches of some clients, step by step, padded to one size."""

    resident: bool  # whether the samples, and so these sample numbers, are on the model's device
    samples: Tensor  # (S, K, n)
    drawn: Tensor  # (S, K, n, r)
    weights: Tensor  # (S, K, n) 1 / size of the batch; 0 for padding
    active: list[int]  # (K,) number of clients, the first ones, that take this step
    sizes: list[tuple[int, ...]]  # of each client's batches
    widths: list[int]  # (K,) size of the largest batch at each step

    @staticmethod
    def of(works: Sequence[LocalWork], *, like: Tensor, resident: bool) -> "Plan":
        """The plan of clients that are sorted by their number of steps, on the device of `like`."""
        steps = len(works[0].sizes)
        n = max(max(work.sizes) for work in works)
        slots = [_slots(work.sizes, steps, n) for work in works]
        samples = torch.stack([_take(work.samples, at) for work, (at, _) in zip(works, slots, strict=True)])
        drawn = torch.stack([_take(work.drawn, at) for work, (at, _) in zip(works, slots, strict=True)])
        weights = torch.stack([weight for _, weight in slots]).to(like)
        active = [sum(len(work.sizes) > k for work in works) for k in range(steps)]
        device = like.device if resident else samples.device
        sizes = [work.sizes for work in works]
        widths = [max(own[k] for own in sizes[: active[k]]) for k in range(steps)]
        return Plan(resident, samples.to(device), drawn.to(device), weights, active, sizes, widths)

    def batch(self, task: Task, k: int) -> tuple[Batch, Tensor]:
        """The batches (active, n, ...) of step `k` and the weights (active, n) of their samples' losses."""
        active, width = self.active[k], self.widths[k]
        if not width:  # all of them are empty, with privacy
            return (), self.weights[:active, k, :0]
        samples, drawn = self.samples[:active, k, :width], self.drawn[:active, k, :width]
        batch = task.batch(samples.flatten(), drawn.flatten(0, 1))
        return tuple(t.unflatten(0, samples.shape).contiguous() for t in batch), self.weights[:active, k, :width]


def _slots(sizes: tuple[int, ...], steps: int, n: int) -> tuple[Tensor, Tensor]:
    """For each step and place in a batch (steps, n): the index into the client's drawn samples, and the weight."""
    size = torch.tensor([*sizes, *[0] * (steps - len(sizes))])
    place = torch.arange(n)
    at = (size.cumsum(0) - size)[:, None] + place
    real = place < size[:, None]
    return torch.where(real, at, 0), real.double() / size.clamp(min=1)[:, None]


def _take(rows: Tensor, at: Tensor) -> Tensor:
    """The rows with these numbers; zeros if there are none at all, as with privacy: all of them are padding."""
    return rows[at] if len(rows) else rows.new_zeros(*at.shape, *rows.shape[1:])
