"""AdamW's direction (arXiv 1711.05101) without weight decay: the ratio of the moments, elementwise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.validation import check
from fedadamw.vector import Vector

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


class Moments(NamedTuple):
    """Adam's running means, (..., d) each."""

    m: Vector
    v: Vector


def adamw(
    g: Vector, moments: Moments, m_steps: Tensor, v_steps: Tensor, *, betas: tuple[float, float], eps: float
) -> tuple[Vector, Moments]:
    """Return the direction u (..., d) for the gradient `g`, and the moments after it.

    m_steps, v_steps: number of gradients in each moment since it was zero, including this one (..., 1).
    """
    beta1, beta2 = betas  # 1 - beta is exact in double; float32(beta) would lose its digits
    m = torch.lerp(moments.m, g, 1 - beta1)
    v = torch.lerp(moments.v, g * g, 1 - beta2)
    root = (v / debias(beta2, v_steps)).rsqrt().reciprocal()  # MKL's sqrt is ten times slower for zeros
    u = m / debias(beta1, m_steps) / (root + eps)
    return u, Moments(m, v)


def check_adamw(betas: tuple[float, float], weight_decay: float) -> None:
    """Raise InputError if a setting of AdamW is out of range."""
    check(all(0 <= beta < 1 for beta in betas), f"betas={betas} must lie in [0, 1)")
    check(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")


def check_above_zero(name: str, value: float) -> None:
    """Raise InputError if a term of the denominator is 0 in float32: a gradient of 0 would then give 0/0."""
    check(
        value >= SMALLEST_NORMAL,
        f"{name}={value} must be at least {SMALLEST_NORMAL:.3g}: without it a gradient of 0 gives 0/0",
    )


def debias(beta: float, steps: Tensor) -> Tensor:
    """Return 1 - beta^steps: the weight that `steps` gradients have in a running mean that started at zero.

    Computed by expm1 of a logarithm in double precision: in float32, 1 - 0.999^k has only five correct digits for small
    k, and so would expm1 of a rounded beta.
    """
    if beta == 0.0:
        return torch.ones_like(steps)
    if torch.compiler.is_compiling():
        compiled: Tensor = _debias(beta, steps)
        return compiled
    return -torch.expm1(steps * math.log(beta))


@torch.library.custom_op("fedadamw::debias", mutates_args=())
def _debias(beta: float, steps: Tensor) -> Tensor:
    """Compute `debias`, opaque to the compiler, which would otherwise compute it for every coordinate."""
    return -torch.expm1(steps * math.log(beta))


@_debias.register_fake
def _(beta: float, steps: Tensor) -> Tensor:
    return torch.empty_like(steps)
