"""How much of a matrix's curvature lies inside blocks: sums of squares of J^T J, without J^T J.

With rows J (r, d) of one parameter, the squared entries of J^T J sum to those of J J^T, (r, r), which may be the
smaller one. Inside a block the same holds for the block's columns of J.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 2**24  # numbers of a product at once


class Share(NamedTuple):
    """The share of the sum of squares that lies inside blocks, and what chance gives."""

    inside: float
    even: float  # were all entries equally large: the share of entries that are inside
    shuffled: float  # of as many blocks of the same sizes with random members, the mean


def share_inside(j: Tensor, blocks: Tensor) -> Share:
    """Return the share of the squares of J^T J inside blocks, from the rows J (r, d) and each column's block (d,)."""
    d, sizes = j.shape[1], torch.bincount(blocks).double()
    total, pairs = sum_of_squares(j), float((sizes**2).sum())
    diagonal = float(j.double().square().sum(0).square().sum())
    inside = _sum_inside(j, blocks)
    off_share = (pairs - d) / (d * d - d) if d > 1 else 1.0  # of the entries off the diagonal, those in a block
    if total == 0:
        return Share(0.0, pairs / d**2, 0.0)
    return Share(inside / total, pairs / d**2, (diagonal + off_share * (total - diagonal)) / total)


def sum_of_squares(j: Tensor) -> float:
    """Return the sum of the squares of J^T J for rows J (..., r, d), over leading axes too; in parts, if large."""
    left = j if j.shape[-2] <= j.shape[-1] else j.mT  # (..., small, large)
    small = left.shape[-2]
    step = max(1, LARGEST // max(1, left[..., :1, :1].numel() * small))
    parts = (left[..., a : a + step, :] @ left.mT for a in range(0, small, step))
    return sum(float(part.double().square().sum()) for part in parts)


def _sum_inside(j: Tensor, blocks: Tensor) -> float:
    """Return the sum of squares inside all blocks; blocks of one size go through together."""
    order, sizes = blocks.argsort(stable=True), torch.bincount(blocks)
    starts = sizes.cumsum(0) - sizes
    total = 0.0
    for size in sizes.unique().tolist():
        if not size:
            continue
        of_size = starts[sizes == size]
        for some in of_size.split(max(1, LARGEST // (len(j) * size))):
            columns = order[some[:, None] + torch.arange(size, device=order.device)]  # (blocks, size)
            total += sum_of_squares(j[:, columns].movedim(1, 0))
    return total


def row_map(j: Tensor, rows: Tensor) -> Tensor:
    """Return the root of the sum of squares of J^T J between each two blocks, (B, B), for a picture.

    rows: each column's block (d,), all of one size.
    """
    count = int(rows.max()) + 1
    columns = j[:, rows.argsort(stable=True)].unflatten(1, (count, -1)).movedim(1, 0)  # (B, r, size)
    if len(j) ** 2 <= columns.shape[-1] ** 2 * len(j) and count * len(j) ** 2 <= 8 * LARGEST:
        products = (columns @ columns.mT).flatten(1).double()  # |J_i^T J_j|^2 is the product of J_i J_i^T and J_j J_j^T
        squares: Tensor = (products @ products.T).clamp(min=0)
        return squares.sqrt()
    every = columns.movedim(0, 1).flatten(1)
    by_row = [(each.mT @ every).double().square().unflatten(1, (count, -1)).sum((0, 2)) for each in columns]
    return torch.stack(by_row).sqrt()
