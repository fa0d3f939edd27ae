"""LAMB's direction (arXiv 1904.00962): Adam's with decay, scaled in each tensor to the length of its weights."""

import torch
from torch import Tensor

from fedadamw.vector import Layout, Vector


def lamb(u: Vector, y: Vector, layout: Layout, *, weight_decay: float, trust: tuple[float, float]) -> Vector:
    """Return r (u + lambda y), with the trust ratio r = |y| / |u + lambda y| of each tensor clamped to `trust`.

    u: Adam's direction (..., d). y: the weights (..., d). A flat tensor (bias, norm, class token), and one that is
    zero, keeps r = 1, as in published implementations; the paper clamps |y| instead of r.
    """
    w = u + weight_decay * y
    return w * layout.spread(trust_ratios(w, y, layout, trust))


def trust_ratios(w: Vector, y: Vector, layout: Layout, trust: tuple[float, float]) -> Tensor:
    """Return |y| / |w| of each tensor of w, y (..., d), clamped to `trust`, as (..., tensors)."""
    of_w, of_y = layout.norms(w), layout.norms(y)
    ratio = torch.where((of_y > 0) & (of_w > 0), (of_y / of_w).clamp(*trust), torch.ones_like(of_y))
    flat = (shape.numel() == max(shape, default=1) for shape in layout.shapes)
    return torch.stack([torch.ones_like(r) if f else r for r, f in zip(ratio.unbind(-1), flat, strict=True)], -1)
