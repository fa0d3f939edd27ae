"""What an answer must be before it counts: every number of it comes from a machine that is somebody else's.

Names, shapes and types are wire.py's. Here: finite, not negative where that has no meaning, steps and samples as
asked and registered, and no longer than updates are.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from fedadamw.flower.wire import RefusedError
from fedadamw.settings.federation import FederationSettings
from fedadamw.vector import LARGEST_PLAUSIBLE

STATISTICS = "statistics"  # BatchNorm's, beside the fields of an upload
LOSS = 1e6  # nats; a model that is this wrong has nothing to say
ROUNDS = 5  # whose accepted lengths the bound looks back on


def check_numbers(up: Any, statistics: Mapping[str, Tensor], *, nonnegative: Sequence[str], steps: int | None) -> None:
    """Raise RefusedError where an upload holds what no honest client sends.

    statistics: BatchNorm's, by name. nonnegative: fields that are never below 0. steps: the most local steps that were
    asked for, where that is known; the field `k` counts them.
    """
    for name, t in {**up._asdict(), **statistics}.items():
        if not t.numel():
            continue
        least, most = map(float, torch.aminmax(t))  # NaN where any number is
        if not math.isfinite(least + most):
            raise RefusedError("not-finite", f"{name!r} has numbers that are not finite")
        if max(-least, most) > LARGEST_PLAUSIBLE:
            raise RefusedError("too-long", f"{name!r} has numbers above {LARGEST_PLAUSIBLE:g}")
        if least < 0 and (name in nonnegative or name.endswith("running_var")):
            raise RefusedError("negative", f"{name!r} has numbers below 0")
    k = getattr(up, "k", None)
    if k is not None and not bool(((k >= 1) & (k <= (steps or LARGEST_PLAUSIBLE))).all()):
        asked = "at least 1 was" if steps is None else f"{steps} were"
        raise RefusedError("steps", f"{float(k.flatten()[0]):g} steps are said to be done, {asked} asked for")


def without_constants(statistics: Tensor, begun: Tensor) -> Tensor:
    """The statistics, with 0 for what no running number comes near and is as it has `begun`: a mask, say."""
    return statistics.masked_fill((statistics.abs() > LARGEST_PLAUSIBLE) & (statistics == begun), 0)


def check_metrics(numbers: Mapping[str, Any], client: int, samples: int | None) -> float:
    """The mean loss that an answer tells; RefusedError where it or the number of samples cannot be.

    client: that was asked; its node may have been started as another since. samples: what the node registered with;
    None where it told none, and is to tell none.
    """
    if numbers.get("client") != client:
        raise RefusedError("other-client", f"it is client {numbers.get('client')!r} now")
    loss = numbers.get("loss")
    if not isinstance(loss, float) or not abs(loss) < torch.finfo(torch.float32).max:
        raise RefusedError("not-finite", f"the loss is {loss!r}")
    if abs(loss) > LOSS:
        raise RefusedError("too-long", f"the loss is {loss:.3g}")
    told = numbers.get("num-examples")
    if told != samples:
        raise RefusedError("samples", f"the node says it has {told!r} samples, and registered with {samples!r}")
    return loss


def lengths(up: Any, statistics: Tensor, *, steps: bool) -> dict[str, float]:
    """The l2 norm of each vector of an upload and of the statistics that came with it; where `steps`, its counter's."""
    vectors = {**{name: t for name, t in up._asdict().items() if name != "k" or steps}, STATISTICS: statistics}
    norm = torch.linalg.vector_norm
    return {name: float(norm(t, dtype=torch.float64)) for name, t in vectors.items() if t.numel()}


class Bounds:
    """How long an upload's vectors may be: a fixed bound on the update, and a multiple of what is usual for each."""

    def __init__(self, federation: FederationSettings) -> None:
        self.federation = federation
        self.past: deque[list[Mapping[str, float]]] = deque(maxlen=ROUNDS)  # lengths of each round's accepted uploads

    def limits(self, present: Sequence[Mapping[str, float]], model: float) -> dict[str, float]:
        """The bound of each field in a round with uploads of these lengths; inf where there is none.

        model: the model's own length, which is what a first update is held to where it is the only one.

        What is usual is the larger one of two medians: of the last rounds' accepted uploads, and of the present ones
        where they are several (the lower one of two), since all may grow at once.
        """
        past = [found for round_ in self.past for found in round_]
        limits = {}
        for name in present[0] if present else ():
            known = [found[name] for found in past if name in found]  # settings may have changed since
            medians = [median_low(known)] if known else []
            if len(present) > 1:
                medians.append(median_low(found[name] for found in present))
            usual = max(medians, default=model if name == "delta" else 0.0)
            factor = self.federation.norm_factor
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
