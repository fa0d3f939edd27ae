"""FedLAMB: LAMB on clients with shared block means of v and global alignment; after FedAdamW (2510.27486).

    server keeps x, Delta_G = 0, v_bar = 0 (B numbers), t = 0
    client:  y = x;  m = 0;  v = expand(v_bar)                                      1
             for k = 1..K, with g the gradient at y:
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        2
                 w = m/(1 - beta1^k) / (sqrt(v/(1 - beta2^(t+k))) + eps) + lambda y 3
                 r = |y| / |w| of each tensor, clamped to `trust`                   4
                 y = y - lr (r w + alpha Delta_G)                                   5
             send delta = y - x, block means of v, K                                6
    server:  x = x + mean delta;  Delta_G = - mean delta / (mean K lr)              7
             v_bar = mean of the block means;  t = t + mean K                       8

LAMB is arXiv 1904.00962. A matrix that starts at zero (LoRA's B) has a norm near zero: the lower end of `trust` lets it
grow. With r fixed to 1 (`trust: [1, 1]`) it is FedAdamW. Fed-LAMB (Karimi, Li and Li, UAI 2023) is
another method: layer-wise scaling of AMSGrad's local steps, without alignment.

If clients take unequal K (`unequal_steps`), each sends q = beta2^(t + K) too, and t = ln(mean q)/ln(beta2): counter.py.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms.counter import count_gradients, find_q, with_q
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw, check_above_zero, check_adamw
from fedadamw.directions.align import take_aligned_step
from fedadamw.directions.lamb import lamb
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,) the global model
    delta: Vector  # (d,) Delta_G, the last global direction
    v: Tensor  # (B,) block means
    t: Tensor  # (1,) steps so far


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    v: Tensor  # (..., B)
    k: Tensor  # (..., 1)


@dataclass(frozen=True, kw_only=True)
class FedLAMB(Algorithm[Server, Server, tuple[()], Local, Up]):
    """LAMB on clients, with the block means and the alignment of FedAdamW."""

    blocks: Blocks  # v is averaged in each; trust ratios are per tensor of its layout
    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-6  # added to the denominator (above 0)
    weight_decay: float = 0.01  # inside the trust ratio, times lr (at least 0)
    alpha: float = 0.5  # weight of Delta_G in every local step (at least 0)
    trust: tuple[float, float] = (0.01, 10.0)  # lowest and highest trust ratio (each at least 0)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting
    unequal_steps: bool = False  # whether clients take unequal numbers of steps; no setting

    tuning: ClassVar = {"lr": (1e-3, 3e-3, 1e-2), "weight_decay": (1e-3, 1e-2, 1e-1), "alpha": (0.25, 0.5, 0.75)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check(self.alpha >= 0, f"alpha={self.alpha} must not be negative")
        check(0 <= self.trust[0] <= self.trust[1], f"trust={self.trust} must be a range of numbers from 0")

    @property
    def carried(self) -> tuple[float, ...]:  # type: ignore[override]  # as the clients' steps say
        """Decay rate of v, if it is counted by its q."""
        return self.betas[1:] if self.unequal_steps else ()

    def server_init(self, x: Vector) -> Server:
        zero = torch.zeros_like(x)
        return Server(x, zero, self.blocks.mean(zero), x.new_zeros(1))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:  # line 1
        moments = Moments(torch.zeros_like(down.x), self.blocks.expand(down.v))
        return Local(down.x, moments, torch.zeros_like(down.t))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        k = local.k + 1
        u, moments = adamw(  # lines 2, 3
            g, local.moments, k, k + down.t, betas=self.betas, eps=self.eps, noise=self.noise
        )
        w = lamb(u, local.y, self.blocks.layout, weight_decay=self.weight_decay, trust=self.trust)  # lines 3, 4
        y = take_aligned_step(local.y, w, down.delta, lr, alpha=self.alpha, weight_decay=0.0)  # line 5
        return Local(y, moments, k)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 6
        up = Up(local.y - down.x, self.blocks.mean(local.moments.v), local.k)
        return (with_q(up, find_q(down.t + local.k, self.carried)) if self.carried else up), ()

    def server_update(self, server: Server, up: Any, lr: Tensor, participation: Tensor) -> Server:  # lines 7, 8
        t = server.t + up.k
        if self.carried:
            t = count_gradients(up.q, t, self.carried)
        return Server(server.x + up.delta, -up.delta / (up.k * lr), up.v, t)
