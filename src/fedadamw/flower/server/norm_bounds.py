"""Limits the l2 norms of an upload's vectors relative to the other uploads of this round and the last ones."""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from fedadamw.settings.federation import FederationSettings

STATISTICS = "statistics"  # BatchNorm's, beside the fields of an upload
PAST_ROUNDS = 5  # whose uploads the usual norm is computed from

Norms = Mapping[str, float]  # field -> l2 norm


def measure_norms(up: Any, statistics: Tensor, *, known: Collection[str]) -> dict[str, float]:
    """Return the l2 norm of each field of an upload and of its statistics, but for fields that the server `known`s."""
    vectors = {**{name: t for name, t in up._asdict().items() if name not in known}, STATISTICS: statistics}
    norm = torch.linalg.vector_norm
    return {name: float(norm(t, dtype=torch.float64)) for name, t in vectors.items() if t.numel()}


class NormBounds:
    """The bound on each field: `norm_factor` times its usual norm, and `max_norm` for the update."""

    def __init__(self, federation: FederationSettings) -> None:
        self.federation = federation
        self.past: deque[list[Norms]] = deque(maxlen=PAST_ROUNDS)  # of the uploads that counted, by round

    def limits(self, present: Sequence[Norms], model_norm: float) -> dict[str, float]:
        """Return the bound of each field in a round with uploads of these norms; inf if there is none."""
        limits = {}
        for name in present[0] if present else ():
            usual, factor = self._usual(name, present, model_norm), self.federation.norm_factor
            limits[name] = usual * factor if factor and usual > 0 else math.inf
        if self.federation.max_norm and "delta" in limits:
            limits["delta"] = min(limits["delta"], self.federation.max_norm)
        return limits

    def record_round(self, norms: list[Norms]) -> None:
        """Remember the norms of a round's uploads that counted."""
        if norms:
            self.past.append(norms)

    def _usual(self, name: str, present: Sequence[Norms], model_norm: float) -> float:
        """Return a field's usual norm: the larger of the medians over the last rounds and over this one.

        This round's counts only with two uploads or more (of two, the smaller norm); norms may grow from round to
        round. The first update, if it is the only one, is compared with the model's norm.
        """
        known = [norms[name] for round_ in self.past for norms in round_ if name in norms]  # settings may have changed
        medians = [median_low(known)] if known else []
        if len(present) > 1:
            medians.append(median_low(norms[name] for norms in present))
        return max(medians, default=model_norm if name == "delta" else 0.0)


def find_too_long(norms: Norms, limits: Norms) -> list[str]:
    """Return the fields whose norms exceed their limits."""
    return [name for name, norm in norms.items() if norm > limits[name]]


def clip(up: Any, norms: Norms, limits: Norms) -> Any:
    """Scale the fields of an upload that are too long down to their limits."""
    scales = {name: limits[name] / norms[name] for name in find_too_long(norms, limits) if name != STATISTICS}
    return up._replace(**{name: getattr(up, name) * scale for name, scale in scales.items()})
