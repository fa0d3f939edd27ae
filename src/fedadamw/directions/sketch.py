"""Low-rank messages for matrices: linear in the matrix, so that they can be averaged.

Sender and receiver know the same orthonormal bases P (rows, r) and Q (columns, r). The sender sends L = M Q and
R = M^T P; their means over senders are those of the mean matrix, which the receiver rebuilds as

    P R^T + (L - P P^T L) Q^T

The error is (I - P P^T) M (I - Q Q^T), never larger in norm than M, and 0 if the columns of M lie in P. The
next bases are those of L and R, so that they follow the matrix from round to round, as in a power iteration (PowerSGD,
arXiv 1905.13727).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sketch(NamedTuple):
    """The state about a matrix that both sides share."""

    p: Tensor  # (..., rows, r) orthonormal, or zero at the start
    q: Tensor  # (..., columns, r)
    left: Tensor  # (..., rows, r) M Q
    right: Tensor  # (..., columns, r) M^T P

    def matrix(self) -> Tensor:
        """Rebuild the matrix (..., rows, columns), of rank 2r at most."""
        residual = self.left - self.p @ (self.p.mT @ self.left)
        return self.p @ self.right.mT + residual @ self.q.mT

    def bases(self) -> tuple[Tensor, Tensor]:
        """Return the next P and Q; unit vectors for a zero matrix."""
        return torch.linalg.qr(self.left).Q, torch.linalg.qr(self.right).Q


def encode(matrix: Tensor, sketch: Sketch) -> tuple[Tensor, Tensor]:
    """Return the message for `matrix` (..., rows, columns): L and R in the next bases of `sketch`."""
    p, q = sketch.bases()
    return matrix @ q, matrix.mT @ p


def decode(left: Tensor, right: Tensor, sketch: Sketch) -> Sketch:
    """Return the sketch after receiving `left` and `right`, or their means over senders."""
    return Sketch(*sketch.bases(), left, right)
