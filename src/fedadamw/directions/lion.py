"""Lion's direction (arXiv 2302.06675) without weight decay: the sign of a mixture of momentum and gradient."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from fedadamw.vector import Vector


def lion(g: Vector, m: Vector, *, betas: tuple[float, float]) -> tuple[Vector, Vector]:
    """Return the direction u (..., d) of -1, 0 and 1 for the gradient `g`, and the momentum m (..., d) after it."""
    if not isinstance(g, Tensor):  # a step that is recorded, see engine/fused.py
        recorded: tuple[Vector, Vector] = handle_torch_function(lion, (g,), g, m, betas=betas)
        return recorded
    beta1, beta2 = betas
    return torch.lerp(m, g, 1 - beta1).sign(), torch.lerp(m, g, 1 - beta2)


def lion_(y: Vector, g: Vector, m: Vector, *, betas: tuple[float, float], lr: float) -> None:
    """Step y - lr u along the direction of `lion`, in place, and move `m`; all (n,)."""
    beta1, beta2 = betas
    y.add_(torch.lerp(m, g, 1 - beta1).sign_(), alpha=-lr)
    m.lerp_(g, 1 - beta2)
