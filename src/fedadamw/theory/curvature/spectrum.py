"""Eigenvalues of the loss's curvature at a run's weights: how many of them are large?

The Gauss-Newton matrix exactly where its rows fit in memory, from the smaller of J J^T and J^T J. Where they do not,
and for the Hessian, stochastic Lanczos, which gives the density of all eigenvalues and the largest of them.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fedadamw.randomness import Purpose, torch_generator
from fedadamw.task import Batch
from fedadamw.theory.curvature.jacobian import LIMIT_BYTES, count_outputs, jacobian, row_bytes
from fedadamw.theory.curvature.lanczos import Nodes, find_nodes
from fedadamw.theory.curvature.products import gauss_newton_product, hessian_product
from fedadamw.theory.curvature.subject import Report, Subject, check_finite
from fedadamw.vector import Layout, Vector

Matrix = Literal["gauss-newton", "hessian"]
AT_ONCE = 64  # samples in a product


class Spectrum(NamedTuple):
    """Eigenvalues, descending, and how many of the d each stands for; of random vectors, the mean over them."""

    matrix: Matrix
    method: Literal["exact", "lanczos"]
    d: int
    samples: int
    values: Tensor  # (k,) in float64; for `exact` all that can be other than 0
    counts: Tensor  # (k,) in float64: 1 each, or for Lanczos d times the quadrature's weights

    def sum_of(self, function: Callable[[Tensor], Tensor]) -> float:
        """Return the sum over all eigenvalues of a function that is 0 at 0."""
        return float((self.counts * function(self.values)).sum())

    def facts(self) -> dict[str, Any]:
        """Return the spectrum and its sums, for a JSON file."""
        trace, squares = self.sum_of(lambda t: t), self.sum_of(torch.square)
        return {
            "matrix": self.matrix,
            "method": self.method,
            "d": self.d,
            "samples": self.samples,
            "largest": float(self.values[0]),
            "smallest": float(self.values[-1]) if len(self.values) == self.d or self.method == "lanczos" else 0.0,
            "trace": trace,
            "sum_of_roots": self.sum_of(lambda t: t.clamp(min=0).sqrt()),
            "effective_rank": trace**2 / squares if squares else 0.0,
            "half_of_trace": _count_to_half(self),
            "values": self.values.tolist(),
            "counts": self.counts.tolist(),
        }


def find_spectrum(
    subject: Subject, count: int, matrix: Matrix, *, steps: int, probes: int, report: Report = lambda *_: None
) -> Spectrum:
    """Return the spectrum of a matrix of the mean loss over `count` training samples.

    steps, probes: products for each random vector, and how many of these, if Lanczos is needed.
    """
    samples = subject.draw(count)
    batches = list(subject.batches(samples, AT_ONCE))
    if matrix == "gauss-newton":
        rows = len(samples) * count_outputs(subject, batches[0])
        if row_bytes(subject, rows) <= LIMIT_BYTES:
            return _exact(subject, batches, len(samples), report)
    return _lanczos(subject, batches, matrix, len(samples), steps, probes, report)


def _exact(subject: Subject, batches: list[Batch], n: int, report: Report) -> Spectrum:
    names = Layout.of(subject.model).names
    j = jacobian(subject, batches, names, lambda done: report("Jacobian", done, n))
    small = (j @ j.T if len(j) <= j.shape[1] else j.T @ j).double().cpu() / n
    report("eigenvalues", 0, 1)
    values = torch.linalg.eigvalsh(small).flip(0).clamp(min=0)
    report("eigenvalues", 1, 1)
    return Spectrum("gauss-newton", "exact", j.shape[1], n, values, torch.ones_like(values))


def _lanczos(
    subject: Subject, batches: list[Batch], matrix: Matrix, n: int, steps: int, probes: int, report: Report
) -> Spectrum:
    product_of = (gauss_newton_product if matrix == "gauss-newton" else hessian_product)(subject, batches)
    layout, like = Layout.of(subject.model), next(p for p in subject.model.parameters() if p.requires_grad)
    done, found, each = 0, list[Nodes](), min(steps, layout.d)

    def times(v: Vector) -> Vector:
        product = product_of(v)
        check_finite(product)
        return product

    def step() -> None:
        nonlocal done
        done += 1
        report("products", done, each * probes)

    for probe in range(probes):
        generator = torch_generator(subject.seed, Purpose.MEASURED, 1, probe, device=torch.device("cpu"))
        q = torch.randn(layout.d, generator=generator).to(like)
        found.append(find_nodes(times, q, steps, step))
    return Spectrum(matrix, "lanczos", layout.d, n, *_merge(found, layout.d))


def _merge(found: Iterable[Nodes], d: int) -> tuple[Tensor, Tensor]:
    """Return the nodes of all random vectors, descending, and how many eigenvalues each stands for."""
    nodes = list(found)
    values, weights = torch.cat([n.values for n in nodes]), torch.cat([n.weights for n in nodes])
    order = values.argsort(descending=True)
    return values[order], weights[order] * d / len(nodes)


def _count_to_half(spectrum: Spectrum) -> float:
    """Return how many of the largest eigenvalues, in absolute value, have half of the sum of absolute values."""
    sizes, order = spectrum.values.abs().sort(descending=True)
    counts = spectrum.counts[order]
    sums = (sizes * counts).cumsum(0)
    last = min(int((sums < sums[-1] / 2).sum()), len(sums) - 1)
    return float(counts[: last + 1].sum())
