"""The gradients of samples with respect to one parameter, and their weighted sum: as rows, or as factors of them.

A sample's gradient of a matrix is G = sum over positions t of e_t x_t^T. Where positions are few, G is never made:

    |G|^2 = sum over s, t of (x_s . x_t) (e_s . e_t)
    sum over samples of w G = one product of all samples' w e and x, as in a plain backward
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.vector import Vector

PIECE = 4096  # numbers whose squares are summed in the type of a gradient


class Rows(NamedTuple):
    """Gradients as they are."""

    rows: Tensor  # (..., n, size)

    def squares(self) -> Tensor:
        """Return the squared norm of each sample's gradient, (..., n), in float64.

        One long sum in float32 would lose digits.
        """
        whole = self.rows.shape[-1] // PIECE * PIECE
        pieces = torch.linalg.vector_norm(self.rows[..., :whole].unflatten(-1, (-1, PIECE)), dim=-1) if whole else None
        rest: Tensor = torch.linalg.vector_norm(self.rows[..., whole:], dim=-1).double().square()
        return rest if pieces is None else rest + pieces.double().square().sum(-1)

    def without(self, wrong: Tensor) -> "Rows":
        """Return them with 0 for the samples that are `wrong` (..., n)."""
        return Rows(self.rows.masked_fill(wrong[..., None], 0.0))

    def add_to(self, total: Vector, weights: Tensor) -> None:
        """Add to `total` (..., size) the sum with these weights (..., n)."""
        total.add_((weights[..., None, :] @ self.rows)[..., 0, :])

    def of_sample(self, i: int) -> Tensor:
        """Return the gradient of sample `i`, (size,)."""
        return self.rows[i]


class Products(NamedTuple):
    """Gradients of a matrix as the two factors that they are products of."""

    e: Tensor  # (n, positions, out), of the layer's output
    x: Tensor  # (n, positions, in), the layer's input

    @staticmethod
    def fit(e: Tensor, x: Tensor) -> bool:
        """Whether that is less work than to make the gradients, and as exact: not in half precision or TF32."""
        exact = e.dtype == x.dtype and e.dtype in (torch.float32, torch.float64)
        exact = exact and e.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
        (positions, out), size = e.shape[-2:], x.shape[-1]
        return exact and positions * (out + size) < out * size

    def squares(self) -> Tensor:
        """As of Rows, at least: what rounding may have taken off is added, since a norm must not come out too small."""
        of_x, of_e = self.x @ self.x.mT, self.e @ self.e.mT
        lengths = of_x.diagonal(dim1=-2, dim2=-1).sqrt() * of_e.diagonal(dim1=-2, dim2=-1).sqrt()
        roundings = self.x.shape[-1] + self.e.shape[-1] + self.x.shape[-2]
        lost = roundings * torch.finfo(self.x.dtype).eps * lengths.sum(-1) ** 2
        return ((of_x * of_e).sum((-2, -1)) + lost).clamp(min=0.0).double()

    def without(self, wrong: Tensor) -> "Products":
        """As of Rows."""
        return Products(*(t.masked_fill(wrong[:, None, None], 0.0) for t in self))

    def add_to(self, total: Vector, weights: Tensor) -> None:
        """As of Rows, to the matrix (out * in,)."""
        weighted = (self.e * weights[:, None, None]).flatten(0, 1)
        total.view(self.e.shape[-1], self.x.shape[-1]).addmm_(weighted.T, self.x.flatten(0, 1))

    def of_sample(self, i: int) -> Tensor:
        """As of Rows."""
        return (self.e[i].T @ self.x[i]).flatten()


Summand = Rows | Products
