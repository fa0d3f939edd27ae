"""Muon's direction (Jordan et al., 2024): the momentum of each matrix, orthogonalized."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedadamw.vector import Layout, Vector

QUINTIC = (3.4445, -4.7750, 2.0315)  # drives singular values towards 1 quickly, to within 0.7 .. 1.2


def muon(u: Vector, m: Vector, layout: Layout, matrices: Iterable[str], *, steps: int) -> Vector:
    """Return `u` (..., d) with the tensors named `matrices` replaced by their momenta in `m` (..., d), orthogonalized.

    A tensor is read as a matrix: its first axis by the rest. Each is scaled by 0.2 sqrt(max(rows, columns)) to the size
    of AdamW's steps, so that one learning rate serves both (arXiv 2502.16982).
    """
    out = u.clone()
    sources, targets = layout.views(m), layout.views(out)
    for names in group_by_shape(layout, matrices):
        stack = torch.stack([as_matrix(sources[name], layout, name) for name in names])
        scale = 0.2 * max(stack.shape[-2:]) ** 0.5
        for name, direction in zip(names, scale * orthogonalize(stack, steps), strict=True):
            targets[name].copy_(direction.reshape(targets[name].shape))
    return out


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Return U V^T, approximately, of each of `matrices` (..., rows, columns) = U S V^T.

    By `steps` Newton-Schulz iterations, batched over the leading axes; zero stays zero.
    """
    a, b, c = QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.mT
    return result


def group_by_shape(layout: Layout, names: Iterable[str]) -> list[list[str]]:
    """Group the named tensors by shape, so that each group can be stacked."""
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    groups: dict[torch.Size, list[str]] = {}
    for name in names:
        groups.setdefault(shapes[name], []).append(name)
    return list(groups.values())


def as_matrix(tensor: Tensor, layout: Layout, name: str) -> Tensor:
    """Reshape a named tensor (..., *shape) to (..., rows, columns): its first axis by the rest."""
    shape = layout.shapes[layout.names.index(name)]
    return tensor.reshape(*tensor.shape[: tensor.dim() - len(shape)], shape[0], -1)
