"""How much the clients of a round differ: second moments, drift, alignment, norms of updates.

The quantities of FedAdamW's figures (arXiv 2510.27486), and how well a carried v predicts (likelihood.py). They are
computed only with training.diagnostics.
"""

import torch
from torch import Tensor, nn

from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.likelihood import MEMORIES, Sums
from fedadamw.vector import Vector

Numbers = dict[str, float | dict[str, float] | dict[str, dict[str, float]] | None]


class Diagnostics:
    """Takes the clients of one round, one after the other, and keeps their updates: (clients, d) numbers.

    model: gives each coordinate's class (query, MLP, ...). last: the last round's change of x, (d,), or (0,).
    """

    def __init__(self, model: nn.Module, last: Vector) -> None:
        blocks = Blocks.of(model, "tensor")
        self.layout, self.kinds, self.last = blocks.layout, blocks.kinds, last.double()
        self._updates: list[Vector] = []
        self._norms: list[Tensor] = []
        self._cosines: list[Tensor] = []
        self._likelihood: Sums | None = None
        self._v_mean: Vector | None = None
        self._v_squares: Vector | None = None  # sum of squared distances from the mean: Welford's

    def add(self, update: Vector, v: Vector | None, likelihood: Sums | None = None) -> None:
        """Add one client's y - x (d,), its second moment (d,) and the likelihood of its gradients, if it has these."""
        if likelihood is not None:
            known = self._likelihood
            self._likelihood = likelihood if known is None else Sums(*map(torch.add, known, likelihood))
        self._updates.append(update)
        norm = torch.linalg.vector_norm(update, dtype=torch.float64)
        self._norms.append(norm)
        if len(self.last):  # in float64: the order in which a processor adds depends on where a vector lies
            self._cosines.append(torch.nan_to_num(update.double() @ self.last / norm / self.last.norm()))
        if v is None:
            return
        if self._v_mean is None or self._v_squares is None:
            self._v_mean, self._v_squares = v.clone(), torch.zeros_like(v)
            return
        step = v - self._v_mean
        self._v_mean = self._v_mean + step / len(self._updates)
        self._v_squares = self._v_squares + step * (v - self._v_mean)

    def summary(self) -> Numbers:
        """The round's diagnostics; `..._by_kind` by class of block; None if not defined.

        v_variance: over clients (unbiased), mean over coordinates. v_mean: over both. v_dispersion: the variance's root
        over it, which bias corrections do not change. drift: mean |y_i - mean y|. cosine: of updates with the last
        global one. likelihood: of a gradient, in nats, by class of block and M; `all` of them together.
        """
        mean, squares = torch.zeros_like(self._updates[0]), torch.zeros_like(self._updates[0])
        for update in self._updates:  # never all of them in one tensor beside the list
            mean += update / len(self._updates)
            squares += update.square() / len(self._updates)
        distances = [torch.linalg.vector_norm(update - mean) for update in self._updates]
        summary: Numbers = {
            "drift": float(torch.stack(distances).mean()),
            "cosine": float(torch.stack(self._cosines).mean()) if self._cosines else None,
            "update_norm": float(torch.stack(self._norms).mean()),
            "update_norm_by_kind": self._by_kind(squares, root_of_sum=True),
        }
        if self._v_mean is not None and self._v_squares is not None and len(self._updates) > 1:
            variance = self._v_squares / (len(self._updates) - 1)
            summary["v_variance"] = float(variance.mean())
            summary["v_variance_by_kind"] = self._by_kind(variance, root_of_sum=False)
            summary["v_mean"] = float(self._v_mean.mean())
            summary["v_mean_by_kind"] = self._by_kind(self._v_mean, root_of_sum=False)
            summary["v_dispersion"] = float(variance.mean().sqrt() / self._v_mean.mean())
        if self._likelihood is not None:
            summary["likelihood"] = self._likelihood_by_kind(self._likelihood)
        return summary

    def _likelihood_by_kind(self, sums: Sums) -> dict[str, dict[str, float]]:
        """Mean log-likelihood by class and M, of the gradients that are not 0."""
        means, counts, scores = {}, sums.counts.tolist(), sums.scores.tolist()
        for kind in ("all", *dict.fromkeys(self.kinds)):
            of_kind = [i for i, own in enumerate(self.kinds) if kind in ("all", own)]
            if count := sum(counts[i] for i in of_kind):
                means[kind] = {m: sum(row[i] for i in of_kind) / count for m, row in zip(MEMORIES, scores, strict=True)}
        return means

    def _by_kind(self, values: Vector, *, root_of_sum: bool) -> dict[str, float]:
        """Mean of `values` (d,) over the coordinates of each class, or the root of their sum."""
        sums: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for kind, part in zip(self.kinds, values.split(self.layout.sizes), strict=True):
            sums[kind] = sums.get(kind, part.new_zeros(())) + part.sum()
            sizes[kind] = sizes.get(kind, 0) + len(part)
        return {k: float(total.sqrt() if root_of_sum else total / max(sizes[k], 1)) for k, total in sums.items()}
