"""FedAdamW (arXiv 2510.27486): AdamW on clients, with shared block means of v and global alignment.

    server keeps x, Delta_G = 0, v_bar = 0 (B numbers), t = 0
    client:  y = x;  m = 0;  v = expand(v_bar)                                     1
             for k = 1..K, with g the gradient at y:
                 m = beta1 m + (1 - beta1) g                                       2
                 v = beta2 v + (1 - beta2) g*g                                     3
                 u = m/(1 - beta1^k) / (sqrt(v/(1 - beta2^(t+k))) + eps)           4
                 y = y - lr (u + alpha Delta_G + lambda y)                         5
             send delta = y - x, block means of v, K                               6
    server:  x = x + mean delta;  Delta_G = - mean delta / (mean K lr)             7
             v_bar = mean of the block means;  t = t + mean K                      8
             if t > M:  v_bar = v_bar (1 - beta2^M)/(1 - beta2^t);  t = M          9

`share` selects the moments that are carried from round to round: `none`, `m`, `v`, `vm` (whole vectors), `mean-v`
(block means of v, as in the paper). A moment that restarts is debiased by k, a carried one by t + k. Sharing m while v
restarts (`m`) is ill-conditioned: in the first step v is g*g, so coordinates with g near 0 step by about m/|g|.

`align` says how much of Delta_G a step goes along; all but `always` are ours. `agreement`: the server scales it by
|mean delta|^2 / mean |delta|^2, which is 1 if the clients' updates are equal and 1/S if S of them are orthogonal; each
sends one number more, |delta|^2. `cautious`: only in coordinates where it has the sign of u. `bounded`: times alpha
at most as long as u.

`memory` (M) is ours: at a round's start a carried moment counts for at most M gradients, so that the round's own soon
outweigh it; a first step's u is then at most about sqrt(M + 1) in each coordinate. Without it, as in the paper, it
counts for all t.

If clients take unequal K (`unequal_steps`), each sends q = beta2^(t + K) too, and line 8 is t = ln(mean q)/ln(beta2),
for which v_bar/(1 - beta2^t) is unbiased, as of t + mean K it would not be. With `vm` there is a q, and a t, for each
moment (counter.py).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms.counter import count_gradients, find_q, with_q
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import (
    NO_NOISE,
    SMALLEST_NORMAL,
    Moments,
    NoiseInMoments,
    adamw,
    check_above_zero,
    check_adamw,
    debias,
)
from fedadamw.directions.align import ALIGN, take_aligned_step
from fedadamw.validation import check, check_one_of
from fedadamw.vector import Vector, squared_norm

Packing = str  # how a moment is sent: "restart" (not at all), "whole" (d numbers), "mean" (one per block)
SHARES: dict[str, tuple[Packing, Packing]] = {  # share -> (m, v)
    "none": ("restart", "restart"),
    "m": ("whole", "restart"),
    "v": ("restart", "whole"),
    "vm": ("whole", "whole"),
    "mean-v": ("restart", "mean"),
}


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,) the global model
    delta: Vector  # (d,) Delta_G, the last global direction
    m: Tensor  # (0,) or (d,)
    v: Tensor  # (0,), (B,) or (d,)
    t: Tensor  # (1,) steps so far, or (2,): those that m and v count for


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    m: Tensor  # (..., 0) or (..., d)
    v: Tensor  # (..., 0), (..., B) or (..., d)
    k: Tensor  # (..., 1)


class MeasuredUp(NamedTuple):
    """Upload of a client whose agreement with the others is measured."""

    delta: Vector
    m: Tensor
    v: Tensor
    k: Tensor
    square: Tensor  # (..., 1) |delta|^2


@dataclass(frozen=True, kw_only=True)
class FedAdamW(Algorithm[Server, Server, tuple[()], Local, Up | MeasuredUp]):
    """FedAdamW, and its ablations by other values of `share`."""

    blocks: Blocks  # v is averaged in each
    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # decoupled, per step, times lr (at least 0)
    alpha: float = 0.5  # weight of Delta_G in every local step (at least 0)
    align: str = "always"  # when steps go along Delta_G (one of always, agreement, cautious, bounded)
    memory: float | None = None  # gradients that kept moments count for at most, M; null: all (at least 0)
    share: str = "mean-v"  # moments kept from round to round; mean-v: block means of v (one of none, m, v, vm, mean-v)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting
    unequal_steps: bool = False  # whether clients take unequal numbers of steps; no setting

    tuning: ClassVar = {
        "lr": (3e-4, 1e-3, 3e-3),
        "weight_decay": (1e-3, 1e-2, 1e-1),
        "alpha": (0.25, 0.5, 0.75),
    }

    def __post_init__(self) -> None:
        check_one_of("share", self.share, SHARES)
        check_one_of("align", self.align, ALIGN)
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check(self.alpha >= 0, f"alpha={self.alpha} must not be negative")
        check_memory(self.memory)

    @property
    def elementwise(self) -> bool:  # type: ignore[override]  # a length is that of all coordinates
        return self.align != "bounded"

    @property
    def carried(self) -> tuple[float, ...]:  # type: ignore[override]  # as the clients' steps say
        """Decay rates of the moments that are kept from round to round, if they are counted by their q."""
        kept = (beta for beta, how in zip(self.betas, SHARES[self.share], strict=True) if how != "restart")
        return tuple(kept) if self.unequal_steps else ()

    def server_init(self, x: Vector) -> Server:
        zero = torch.zeros_like(x)
        m, v = (pack(zero, how, self.blocks) for how in SHARES[self.share])
        return Server(x, zero, m, v, x.new_zeros(max(len(self.carried), 1)))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:  # line 1
        how_m, how_v = SHARES[self.share]
        moments = Moments(
            unpack(down.m, how_m, self.blocks, like=down.x), unpack(down.v, how_v, self.blocks, like=down.x)
        )
        return Local(down.x, moments, down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        k = local.k + 1
        (how_m, how_v), (t_m, t_v) = SHARES[self.share], of_moments(down.t)
        m_steps, v_steps = k if how_m == "restart" else k + t_m, k if how_v == "restart" else k + t_v
        u, moments = adamw(  # lines 2-4
            g, local.moments, m_steps, v_steps, betas=self.betas, eps=self.eps, noise=self.noise
        )
        delta = ALIGN[self.align](u, down.delta, self.alpha)
        y = take_aligned_step(local.y, u, delta, lr, alpha=self.alpha, weight_decay=self.weight_decay)  # line 5
        return Local(y, moments, k)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up | MeasuredUp, tuple[()]]:  # line 6
        how_m, how_v = SHARES[self.share]
        m, v = pack(local.moments.m, how_m, self.blocks), pack(local.moments.v, how_v, self.blocks)
        up: Up | MeasuredUp = Up(local.y - down.x, m, v, local.k)
        if self.align == "agreement":
            up = MeasuredUp(*up[:4], squared_norm(up.delta))
        return (with_q(up, find_q(down.t + local.k, self.carried)) if self.carried else up), ()

    def server_update(self, server: Server, up: Any, lr: Tensor, participation: Tensor) -> Server:  # lines 7 to 9
        t = server.t + up.k
        if self.carried:
            t = count_gradients(up.q, t, self.carried)
        m, v, t = forget(up.m, up.v, t, betas=self.betas, memory=self.memory)
        delta = -up.delta / (up.k * lr)
        if self.align == "agreement":
            agreement = squared_norm(up.delta) / up.square.clamp(min=SMALLEST_NORMAL)
            delta = delta * agreement.clamp(max=1.0)  # a robust mean may be longer than clients' updates
        return Server(server.x + up.delta, delta, m, v, t)


def forget(
    m: Tensor, v: Tensor, t: Tensor, *, betas: tuple[float, float], memory: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return moments of `t` gradients, and t, as if they were of at most `memory`: debiased, they stay as they are."""
    if memory is None:
        return m, v, t
    kept = t.clamp(max=memory)
    m, v = (
        moment * (debias(beta, few) / debias(beta, own))
        for moment, beta, few, own in zip((m, v), betas, of_moments(kept), of_moments(t), strict=True)
    )
    return m, v, kept


def of_moments(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps (..., 1) that m counts for, and v, of `t` (..., 1) or (..., 2)."""
    return t[..., :1], t[..., -1:]


def check_memory(memory: float | None) -> None:
    """Raise InputError unless `memory` is null or a number of gradients."""
    check(memory is None or memory >= 0, f"memory={memory} must not be negative")


def pack(moment: Vector, how: Packing, blocks: Blocks) -> Tensor:
    """Return the part of a moment (..., d) that is sent: nothing (..., 0), its block means (..., B), or all of it."""
    if how == "restart":
        return moment[..., :0]
    return blocks.mean(moment) if how == "mean" else moment


def unpack(packed: Tensor, how: Packing, blocks: Blocks, *, like: Vector) -> Vector:
    """Return a moment (..., d) from its packed form; zero if none of it was sent."""
    if how == "restart":
        return torch.zeros_like(like)
    return blocks.expand(packed) if how == "mean" else packed
