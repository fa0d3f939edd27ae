"""Lion's direction (arXiv 2302.06675) without weight decay: the sign of a mixture of momentum and gradient."""

import torch

from fedadamw.vector import Vector


def lion(g: Vector, m: Vector, *, betas: tuple[float, float]) -> tuple[Vector, Vector]:
    """Return the direction u (..., d) of -1, 0 and 1 for the gradient `g`, and the momentum m (..., d) after it."""
    beta1, beta2 = betas
    return torch.lerp(m, g, 1 - beta1).sign(), torch.lerp(m, g, 1 - beta2)
