"""A matrix as two thin ones: low-rank messages that can still be averaged, because they are linear in the matrix.

Sender and receiver know the same bases P (rows, r) and Q (columns, r). The sender sends M Q and M^T P; their means over
senders belong to the mean of the matrices, which the receiver rebuilds as (M Q) (P^T M Q)^+ (P^T M), exactly where its
rank is at most r (the generalised Nystroem approximation, arXiv 2009.11392). The next bases are those of what was
rebuilt, so that they follow the matrix from round to round, as in a power iteration (PowerSGD, arXiv 1905.13727).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """A matrix left @ right.mT of rank at most r."""

    left: Tensor  # (..., rows, r)
    right: Tensor  # (..., columns, r)

    def matrix(self) -> Tensor:
        """The matrix (..., rows, columns)."""
        return self.left @ self.right.mT

    def bases(self) -> tuple[Tensor, Tensor]:
        """Orthonormal P (..., rows, r) and Q (..., columns, r); those of a zero matrix are unit vectors."""
        return torch.linalg.qr(self.left).Q, torch.linalg.qr(self.right).Q


def sketch(matrix: Tensor, known: Factors) -> Factors:
    """What is sent of `matrix` (..., rows, columns): M Q and M^T P with the bases of `known`."""
    p, q = known.bases()
    return Factors(matrix @ q, matrix.mT @ p)


def rebuilt(sent: Factors, known: Factors) -> Factors:
    """The factors of the matrix whose sketch (or mean of sketches) `sent` is."""
    p, _ = known.bases()
    core = p.mT @ sent.left
    return Factors(sent.left @ torch.linalg.pinv(core), sent.right)
