"""Which share of the differences between second moments do blocks explain?

v is the mean square of gradients of batches at fixed weights, as AdamW's v after many steps of a small learning rate.
The share is 1 - (variance of log10 v inside blocks) / (its variance over all coordinates): 1 if one number a block
says all, near B/d if blocks are drawn by chance.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.blocks.blocks import Blocks
from fedadamw.theory.curvature.subject import Report, Subject, check_finite
from fedadamw.validation import check
from fedadamw.vector import Vector, trainable

GRANULARITIES = ("paper", "coarse", "tensor")


class Explained(NamedTuple):
    """The share of the variance of log10 v that blocks explain, and that as many random ones do, on average."""

    share: float
    chance: float
    blocks: int


def second_moment(subject: Subject, batches: int, on_step: Callable[[int], None] = lambda _: None) -> Vector:
    """Return the mean square of the gradients of so many batches of the run's size, (d,), in float64.

    Batches are drawn without replacement while the samples last. Raises InputError if a gradient is not finite.
    """
    parameters = list(trainable(subject.model).values())
    size, v = min(subject.batch_size, subject.samples), torch.zeros(0)
    order = subject.draw(subject.samples)
    times = -(-batches * size // len(order))
    numbers = order.repeat(times)[: batches * size]
    for done, batch in enumerate(subject.batches(numbers, size), 1):
        loss = subject.task.losses(subject.model, batch).mean()
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        square = torch.cat([g.reshape(-1).double().square() for g in gradients])
        v = square if done == 1 else v + (square - v) / done
        check_finite(square)
        on_step(done)
    return v


def explain_by_blocks(subject: Subject, batches: int, report: Report = lambda *_: None) -> dict[str, Explained]:
    """Return what the blocks of each granularity explain of log10 v, of so many batches."""
    v = second_moment(subject, batches, lambda done: report("gradients", done, batches))
    found = {}
    for granularity in GRANULARITIES:
        blocks = Blocks.of(subject.model, granularity)
        numbers = blocks.expand(torch.arange(blocks.B, dtype=torch.float64)).long()
        found[granularity] = explain(v, numbers.to(v.device))
    return found


def explain(v: Vector, blocks: Tensor) -> Explained:
    """Return what blocks (each coordinate's, (d,)) explain of log10 v; coordinates with v = 0 do not count.

    Raises InputError if v is 0 almost everywhere.
    """
    seen = v > 0
    check(int(seen.sum()) > 1, "all gradients are 0: there is no second moment to explain")
    logs, (_, numbers) = v[seen].log10(), blocks[seen].unique(return_inverse=True)
    count = int(numbers.max()) + 1
    sums = torch.zeros(count, dtype=logs.dtype, device=logs.device).index_add_(0, numbers, logs)
    sizes = torch.bincount(numbers, minlength=count).to(sums)
    inside = (logs - (sums / sizes)[numbers]).square().sum()
    whole = (logs - logs.mean()).square().sum()
    share = float(1 - inside / whole) if whole > 0 else 1.0
    return Explained(share, (count - 1) / (len(logs) - 1), count)
