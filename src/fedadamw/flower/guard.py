"""What an answer must be before it counts: every number of it comes from a machine that is somebody else's.

Names, shapes and types are wire.py's. Here: finite, not negative where that has no meaning, steps and samples as
asked and registered, and no longer than updates are.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median, median_low
from typing import Any

import torch
from torch import Tensor

from fedadamw.engine.settings import Federation
from fedadamw.flower.wire import RefusedError

STATISTICS = "statistics"  # BatchNorm's, beside the fields of an upload
ROUNDS = 5  # whose accepted lengths the bound looks back on


def check_numbers(up: Any, statistics: Mapping[str, Tensor], *, nonnegative: Sequence[str], steps: int) -> None:
    """Raise RefusedError where an upload holds what no honest client sends.

    statistics: BatchNorm's, by name. nonnegative: fields that are never below 0. steps: local steps that were asked
    for; the field `k` counts them.
    """
    for name, t in {**up._asdict(), **statistics}.items():
        if not bool(torch.isfinite(t).all()):
            raise RefusedError("not-finite", f"{name!r} has numbers that are not finite")
    signed = {name: t for name, t in statistics.items() if name.endswith("running_var")}
    signed |= {name: getattr(up, name) for name in nonnegative if name in up._fields}
    for name, t in signed.items():
        if bool((t < 0).any()):
            raise RefusedError("negative", f"{name!r} has numbers below 0")
    k = getattr(up, "k", None)
    if k is not None and not bool(((k >= 1) & (k <= steps)).all()):
        raise RefusedError("steps", f"{float(k.flatten()[0]):g} steps are said to be done, {steps} were asked for")


def check_metrics(numbers: Mapping[str, Any], samples: int | None) -> float:
    """The mean loss that an answer tells; RefusedError where it or the number of samples cannot be.

    samples: what the node registered with; None where it told none, and is to tell none.
    """
    loss = numbers.get("loss")
    if not isinstance(loss, float) or not abs(loss) < torch.finfo(torch.float32).max:
        raise RefusedError("not-finite", f"the loss is {loss!r}")
    told = numbers.get("num-examples")
    if told != samples:
        raise RefusedError("samples", f"the node says it has {told!r} samples, and registered with {samples!r}")
    return loss


def lengths(up: Any, statistics: Tensor) -> dict[str, float]:
    """The l2 norm of each vector of an upload, all but its counter, and of the statistics that came with it."""
    vectors = {**{name: t for name, t in up._asdict().items() if name != "k"}, STATISTICS: statistics}
    norm = torch.linalg.vector_norm
    return {name: float(norm(t, dtype=torch.float64)) for name, t in vectors.items() if t.numel()}


class Bounds:
    """How long an upload's vectors may be: a fixed bound on the update, and a multiple of what is usual for each."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.past: deque[list[Mapping[str, float]]] = deque(maxlen=ROUNDS)  # lengths of each round's accepted uploads

    def limits(self, present: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The bound of each field in a round with uploads of these lengths; inf where there is none.

        What is usual is the larger one of two medians: of the last rounds' accepted uploads, and of the present ones
        where they are several (the lower one of two), since all may grow at once.
        """
        past = [found for round_ in self.past for found in round_]
        limits = {}
        for name in present[0] if present else ():
            medians = [median(found[name] for found in past)] if past else []
            if len(present) > 1 or not past:
                medians.append(median_low(found[name] for found in present))
            factor, usual = self.federation.norm_factor, max(medians)
            limits[name] = usual * factor if factor and usual > 0 else math.inf
        if self.federation.max_norm and "delta" in limits:
            limits["delta"] = min(limits["delta"], self.federation.max_norm)
        return limits

    def accepted(self, found: list[Mapping[str, float]]) -> None:
        """A round is over, and these lengths counted."""
        if found:
            self.past.append(found)


def clipped(up: Any, found: Mapping[str, float], limits: Mapping[str, float]) -> Any:
    """The upload, with its vectors of these lengths scaled down to their limits where they are longer."""
    fields = {name: length for name, length in found.items() if name != STATISTICS}
    long = {name: limits[name] / length for name, length in fields.items() if length > limits[name]}
    return up._replace(**{name: getattr(up, name) * scale for name, scale in long.items()})
