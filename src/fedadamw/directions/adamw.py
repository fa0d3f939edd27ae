"""AdamW's direction (arXiv 1711.05101) without weight decay: the ratio of the moments, elementwise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from fedadamw.validation import check
from fedadamw.vector import Vector

MANY = 2.0**60  # steps after which no beta < 1 - 1e-16 has a bias left
UNBIASED = torch.tensor(MANY, dtype=torch.float32, device="cpu")
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


class Moments(NamedTuple):
    """Adam's running means, (..., d) each."""

    m: Vector
    v: Vector


class NoiseInMoments(NamedTuple):
    """Independent noise in gradients, whose known variance is a part of each second moment."""

    variance: float  # phi, of the noise in each number of a gradient; 0: none
    floor: float  # f, the least share of phi that is left of a second moment

    def subtract_from(self, v_hat: Vector) -> Vector:
        """Return the second moment (..., d), debiased, without the noise: max(v_hat - phi, f phi)."""
        return (v_hat - self.variance).clamp(min=self.floor * self.variance)


NO_NOISE = NoiseInMoments(0.0, 1.0)


def adamw(
    g: Vector,
    moments: Moments,
    m_steps: Tensor,
    v_steps: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    noise: NoiseInMoments = NO_NOISE,
) -> tuple[Vector, Moments]:
    """Return the direction u (..., d) for the gradient `g`, and the moments after it.

    m_steps, v_steps: number of gradients in each moment since it was zero, including this one (..., 1).
    noise: in each of them, subtracted from v_hat for u; the v that is returned has it still.
    """
    if not isinstance(g, Tensor):  # a step that is recorded, see engine/fused.py
        recorded: tuple[Vector, Moments] = handle_torch_function(
            adamw, (g,), g, moments, m_steps, v_steps, betas=betas, eps=eps, noise=noise
        )
        return recorded
    beta1, beta2 = betas  # 1 - beta is exact in double; float32(beta) would lose its digits
    m = torch.lerp(moments.m, g, 1 - beta1)
    v = torch.lerp(moments.v, g * g, 1 - beta2)
    v_hat = v / debias(beta2, v_steps)
    if noise.variance:
        v_hat = noise.subtract_from(v_hat)
    root = v_hat.rsqrt().reciprocal()  # MKL's sqrt is ten times slower for zeros
    u = m / debias(beta1, m_steps) / (root + eps)
    return u, Moments(m, v)


class Scales(NamedTuple):
    """What makes torch's kernel, with its own bias corrections left out, take `adamw`'s step."""

    lr: float  # factor of the learning rate
    eps: float

    @staticmethod
    def of(m_steps: Tensor, v_steps: Tensor, *, betas: tuple[float, float], eps: float) -> "Scales":
        """The scales after so many gradients: m/a / (sqrt(v/b) + eps) = sqrt(b)/a m / (sqrt(v) + sqrt(b) eps)."""
        a, root = float(debias(betas[0], m_steps)), math.sqrt(float(debias(betas[1], v_steps)))
        return Scales(root / a, root * eps)


def adamw_(y: Vector, g: Vector, moments: Moments, scales: Scales, *, betas: tuple[float, float], lr: float) -> None:
    """Step y - lr u along the direction of `adamw`, in place, and move `moments`: one pass of torch's fused kernel.

    All are contiguous vectors (n,) of one type, on a CPU.
    """
    torch._fused_adamw_(
        [y],
        [g],
        [moments.m],
        [moments.v],
        [],
        [UNBIASED],
        lr=lr * scales.lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=0.0,
        eps=scales.eps,
        amsgrad=False,
        maximize=False,
    )


def adamw_with_noise_(
    y: Vector,
    g: Vector,
    moments: Moments,
    biases: tuple[float, float],
    noise: NoiseInMoments,
    *,
    betas: tuple[float, float],
    eps: float,
    lr: float,
) -> None:
    """As `adamw_` with noise in the gradients, which torch's kernel cannot subtract: a pass for each operation.

    biases: 1 - beta^steps of each moment.
    """
    moments.m.lerp_(g, 1 - betas[0])
    root = g * g
    moments.v.lerp_(root, 1 - betas[1])
    torch.div(moments.v, biases[1], out=root).sub_(noise.variance).clamp_(min=noise.floor * noise.variance)
    y.addcdiv_(moments.m, root.sqrt_().add_(eps), value=-lr / biases[0])


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


def _debias(beta: float, steps: Tensor) -> Tensor:
    """Compute `debias`, opaque to the compiler, which would otherwise compute it for every coordinate."""
    result: Tensor = torch.ops.fedadamw.debias(beta, steps)
    return result


OPERATORS = torch.library.Library("fedadamw", "DEF")  # by torch.library.custom_op, its first call takes seconds
OPERATORS.define("debias(float beta, Tensor steps) -> Tensor")
OPERATORS.impl("debias", lambda beta, steps: -torch.expm1(steps * math.log(beta)), "CompositeExplicitAutograd")
torch.library.register_fake("fedadamw::debias", lambda beta, steps: torch.empty_like(steps), lib=OPERATORS)
