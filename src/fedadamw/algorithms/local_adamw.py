"""Local AdamW: torch.optim.AdamW on each client with fresh moments each round, and averaged models.

    client:  y = x;  m = v = 0
             for k = 1..K, with g the gradient at y:
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        1
                 y = y - lr (m_hat / (sqrt(v_hat) + eps) + lambda y)                2
             send delta = y - x                                                     3
    server:  x = x + mean delta                                                     4

The baseline of FedAdamW (arXiv 2510.27486): d numbers down, d numbers up.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw, check_above_zero, check_adamw
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class LocalAdamW(Algorithm[Server, Server, tuple[()], Local, Up]):
    """AdamW on clients, averaged models, nothing else shared."""

    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # decoupled, per step, times lr (at least 0)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "weight_decay": (1e-3, 1e-2, 1e-1)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)

    def server_init(self, x: Vector) -> Server:
        return Server(x)

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:
        zero = torch.zeros_like(down.x)
        return Local(down.x, Moments(zero, zero), down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        k = local.k + 1
        u, moments = adamw(g, local.moments, k, k, betas=self.betas, eps=self.eps, noise=self.noise)  # line 1
        return Local(local.y - lr * (u + self.weight_decay * local.y), moments, k)  # line 2

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 3
        return Up(local.y - down.x), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 4
        return Server(server.x + up.delta)
