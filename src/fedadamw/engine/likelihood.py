"""How well the carried second moment predicts the squares of a round's gradients, if it counts for M of them.

With g ~ N(0, v), the log-likelihood of a step's gradient is -1/2 (log v + g^2/v) in each coordinate, up to a constant.
v is what the steps before it would make of the carried one, debiased, if that counted for M gradients:

    v = (w b^k v_hat + own_k) / (w b^k + 1 - b^k),   w = 1 - b^M,   own_k = (1 - b) sum of b^(k-j) g_j^2,   b = beta2

Only the first step is predicted by v_hat for every M; M = 0+ forgets it after that. Computed with training.diagnostics.
"""

from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.directions.adamw import debias
from fedadamw.engine.step import clip_gradient
from fedadamw.settings.training import TrainingSettings
from fedadamw.vector import Vector

MEMORIES = {"0+": 0.0, "1/16": 0.0625, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0, "16": 16.0, "inf": inf}


class Sums(NamedTuple):
    """Sums over steps and coordinates, tensor by tensor of the model, in float64."""

    scores: Tensor  # (..., memories, tensors) log-likelihoods
    counts: Tensor  # (..., tensors) gradients that are not 0


class Likelihood:
    """Takes the gradients of a client, or of stacked ones, step by step.

    v_hat: the carried second moment (d,), debiased. sizes: of the model's tensors. eps: v is at least eps^2. clip: the
    norm that gradients are scaled down to.
    """

    def __init__(self, v_hat: Vector, sizes: tuple[int, ...], clip: float | None, *, beta2: float, eps: float) -> None:
        self.v_hat, self.sizes, self.clip, self.beta2, self.least = v_hat, sizes, clip, beta2, eps**2
        self.steps = 0
        self._own = v_hat.new_zeros(())
        self._sums: Sums | None = None

    @staticmethod
    def of(
        algorithm: AnyAlgorithm, start: AnyState, down: AnyState, sizes: tuple[int, ...], training: TrainingSettings
    ) -> "Likelihood | None":
        """Return one for a round from `start`; None without training.diagnostics, or if no v was carried to it."""
        v, t = getattr(down, "v", None), getattr(down, "t", None)
        if not training.diagnostics or v is None or t is None or not v.numel() or not float(t.flatten()[-1]):
            return None
        kind: Any = algorithm
        if not (hasattr(start, "moments") and hasattr(kind, "betas") and hasattr(kind, "eps")):
            return None  # another package's algorithm, whose v may be something else
        v_hat = start.moments.v / debias(kind.betas[1], t.flatten()[-1:])  # of FedAdamW's two the last is that of v
        return Likelihood(v_hat, sizes, training.clip, beta2=kind.betas[1], eps=kind.eps)

    def add(self, g: Vector) -> None:
        """Add the gradients (..., d) of the next step; of stacked clients the first rows, those that take it.

        Gradients of 0 do not count: no step is longer or shorter for them.
        """
        g = clip_gradient(g, self.clip)
        square, b, k = g * g, self.beta2, self.steps
        own = self._own[: len(g)] if self._own.dim() > 1 else self._own
        scores = []
        for memory in MEMORIES.values():
            carried = (1 - b**memory) * b**k
            v = self.v_hat if k == 0 else (carried * self.v_hat + own) / (carried + 1 - b**k)
            v = v.clamp(min=self.least)
            scores.append(self._by_tensor(-0.5 * (v.log() + square / v) * (g != 0)))
        self._add_sums(torch.stack(scores, -2), self._by_tensor(g != 0))
        moved = torch.lerp(own.expand_as(square), square, 1 - b)
        if self._own.dim() > 1:
            self._own[: len(g)] = moved
        else:
            self._own = moved
        self.steps += 1

    def sums(self, row: int | None = None) -> Sums:
        """Return the sums, of stacked clients those of one row."""
        assert self._sums is not None
        return self._sums if row is None else Sums(*(t[row] for t in self._sums))

    def _by_tensor(self, values: Vector) -> Tensor:
        return torch.stack([part.sum(-1, dtype=torch.float64) for part in values.split(self.sizes, -1)], -1)

    def _add_sums(self, scores: Tensor, counts: Tensor) -> None:
        if self._sums is None:
            self._sums = Sums(scores, counts)
        elif scores.dim() > 2:
            self._sums.scores[: len(scores)] += scores
            self._sums.counts[: len(scores)] += counts
        else:
            self._sums = Sums(self._sums.scores + scores, self._sums.counts + counts)
