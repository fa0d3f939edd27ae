"""Stochastic Lanczos quadrature: the density of a large symmetric matrix's eigenvalues from products with vectors.

Of a random unit vector q, m products span a Krylov space in which the matrix is tridiagonal, (m, m). Its eigenvalues
and the squares of its eigenvectors' first entries are nodes and weights of a Gauss quadrature of the density that q
sees; the mean over some q is that of the matrix. Every new direction is made orthogonal to all before, twice: without
that, rounding gives copies of the largest eigenvalues.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.theory.curvature.products import Product

EXHAUSTED = 1e-10  # a direction this much shorter than the largest one before ends the Krylov space


class Nodes(NamedTuple):
    """Eigenvalues seen by one random vector, ascending, and their weights, which sum to 1; (m,) each, in float64."""

    values: Tensor
    weights: Tensor


def find_nodes(times: Product, q: Tensor, steps: int, on_step: Callable[[], None] = lambda: None) -> Nodes:
    """Return the quadrature's nodes after at most `steps` products, from the vector q (d,), not zero."""
    steps = min(steps, len(q))
    basis = q.new_empty(steps, len(q))
    direction, diagonal, beside = q / torch.linalg.vector_norm(q), list[float](), list[float]()
    for step in range(steps):
        basis[step] = direction
        w = times(direction)
        diagonal.append(float(w.double() @ direction.double()))
        for _ in range(2):
            w = w - basis[: step + 1].T @ (basis[: step + 1] @ w)
        length = float(torch.linalg.vector_norm(w))
        on_step()
        if length <= EXHAUSTED * max(map(abs, (*diagonal, *beside))):
            break
        beside.append(length)
        direction = w / length
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    return Nodes(values, vectors[0].square())
