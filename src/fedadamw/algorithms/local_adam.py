"""Local Adam: torch.optim.Adam on each client with fresh moments each round, and averaged models.

    client:  y = x;  m = v = 0
             for k = 1..K, with g the gradient at y:
                 g = g + lambda y                                                   1
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        2
                 y = y - lr m_hat / (sqrt(v_hat) + eps)                             3
             send delta = y - x                                                     4
    server:  x = x + mean delta                                                     5

Adam (arXiv 1412.6980), whose decay is part of the gradient and so is divided by sqrt(v) too, unlike Local
AdamW's. A baseline of FedAdamW (arXiv 2510.27486).
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
class LocalAdam(Algorithm[Server, Server, tuple[()], Local, Up]):
    """Adam on clients, averaged models."""

    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # part of the gradient (at least 0)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "weight_decay": (1e-4, 1e-3, 1e-2)}

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
        g = g + self.weight_decay * local.y  # line 1
        u, moments = adamw(g, local.moments, k, k, betas=self.betas, eps=self.eps, noise=self.noise)  # line 2
        return Local(local.y - lr * u, moments, k)  # line 3

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 4
        return Up(local.y - down.x), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 5
        return Server(server.x + up.delta)
