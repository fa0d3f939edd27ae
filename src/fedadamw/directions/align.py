"""Global alignment and decoupled weight decay, which FedAdamW adds to the direction."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedadamw.vector import Vector


def take_aligned_step(y: Vector, u: Vector, delta: Vector, lr: Tensor, *, alpha: float, weight_decay: float) -> Vector:
    """Take one local step along the direction `u` (..., d): return y - lr (u + alpha Delta_G + lambda y).

    The paper prints - lambda y inside the bracket, which would grow the weights; decay is meant.
    """
    return y - lr * (u + alpha * delta + weight_decay * y)


def all_of(u: Vector, delta: Vector, alpha: float) -> Vector:
    """Return all of Delta_G, as in the paper."""
    return delta


def cautious(u: Vector, delta: Vector, alpha: float) -> Vector:
    """Return Delta_G where it has the sign of the direction `u`, else 0: as cautious optimizers (arXiv 2411.16085)."""
    return delta * (delta * u > 0)


def bounded(u: Vector, delta: Vector, alpha: float) -> Vector:
    """Return Delta_G, shortened where alpha Delta_G would be longer than the direction `u`."""
    along = alpha * torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
    own = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
    part: Tensor = (own / along.clamp(min=torch.finfo(delta.dtype).tiny)).clamp(max=1.0)
    return delta * part


ALIGN: dict[str, Callable[[Vector, Vector, float], Vector]] = {  # rule -> the part of Delta_G that a step goes along
    "always": all_of,
    "agreement": all_of,  # of one that the server has scaled
    "cautious": cautious,
    "bounded": bounded,
}
