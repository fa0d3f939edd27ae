"""Global alignment and decoupled weight decay, which FedAdamW adds to the direction."""

from torch import Tensor

from fedadamw.vector import Vector


def take_aligned_step(y: Vector, u: Vector, delta: Vector, lr: Tensor, *, alpha: float, weight_decay: float) -> Vector:
    """Take one local step along the direction `u` (..., d): return y - lr (u + alpha Delta_G + lambda y).

    The paper prints - lambda y inside the bracket, which would grow the weights; decay is meant.
    """
    return y - lr * (u + alpha * delta + weight_decay * y)
