"""A matrix as thin ones: low-rank messages that can still be averaged, because they are linear in the matrix.

Sender and receiver know the same orthonormal bases P (rows, r) and Q (columns, r). The sender sends L = M Q and
R = M^T P; their means over senders belong to the mean of the matrices, which the receiver rebuilds as

    P R^T + (L - P P^T L) Q^T

The error is (I - P P^T) M (I - Q Q^T), never longer than M itself, and 0 if the columns of M lie in P. The
next bases are those of L and R, so that they follow the matrix from round to round, as in a power iteration (PowerSGD,
arXiv 1905.13727).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sketch(NamedTuple):
    """What both sides know about a matrix."""

    p: Tensor  # (..., rows, r) orthonormal, or zero at the start
    q: Tensor  # (..., columns, r)
    left: Tensor  # (..., rows, r) M Q
    right: Tensor  # (..., columns, r) M^T P

    def matrix(self) -> Tensor:
        """Rebuild the matrix (..., rows, columns), of rank 2r at most."""
        rest = self.left - self.p @ (self.p.mT @ self.left)
        return self.p @ self.right.mT + rest @ self.q.mT

    def bases(self) -> tuple[Tensor, Tensor]:
        """Return the next P and Q; for a zero matrix, unit vectors."""
        return torch.linalg.qr(self.left).Q, torch.linalg.qr(self.right).Q


def encode(matrix: Tensor, known: Sketch) -> tuple[Tensor, Tensor]:
    """Return the message for `matrix` (..., rows, columns): L and R in the next bases of `known`."""
    p, q = known.bases()
    return matrix @ q, matrix.mT @ p


def decode(left: Tensor, right: Tensor, known: Sketch) -> Sketch:
    """Return the sketch after receiving `left` and `right`, or their means over senders."""
    return Sketch(*known.bases(), left, right)
