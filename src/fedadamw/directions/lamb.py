"""LAMB's direction (arXiv 1904.00962): Adam's with decay, scaled in each tensor to the norm of its weights."""

import torch
from torch import Tensor

from fedadamw.vector import Layout, Vector


def lamb(u: Vector, y: Vector, layout: Layout, *, weight_decay: float, trust: tuple[float, float]) -> Vector:
    """Return r (u + lambda y), with the trust ratio r = |y| / |u + lambda y| of each tensor clamped to `trust`.

    u: Adam's direction (..., d). y: the weights (..., d). r is 1 for flat tensors (bias, norm, class token) and
    for zero tensors, as in published implementations; the paper clamps |y| instead of r.
    """
    w = u + weight_decay * y
    return w * layout.expand(trust_ratios(w, y, layout, trust))


def trust_ratios(w: Vector, y: Vector, layout: Layout, trust: tuple[float, float]) -> Tensor:
    """Return |y| / |w| of each tensor of w, y (..., d), clamped to `trust`, as (..., tensors)."""
    w_norms, y_norms = layout.norms(w), layout.norms(y)
    ratio = torch.where((y_norms > 0) & (w_norms > 0), (y_norms / w_norms).clamp(*trust), torch.ones_like(y_norms))
    flat = (shape.numel() == max(shape, default=1) for shape in layout.shapes)
    return torch.stack([torch.ones_like(r) if f else r for r, f in zip(ratio.unbind(-1), flat, strict=True)], -1)
