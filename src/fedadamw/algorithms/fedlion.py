"""FedLion: Lion on clients with global alignment; the rule of arXiv 2302.06675, as in FedAdamW (2510.27486).

    server keeps x, Delta_G = 0
    client:  y = x;  m = 0
             for k = 1..K, with g the gradient at y:
                 u = sign(beta1 m + (1 - beta1) g)                                  1
                 m = beta2 m + (1 - beta2) g                                        2
                 y = y - lr (u + alpha Delta_G + lambda y)                          3
             send delta = y - x, K                                                  4
    server:  x = x + mean delta;  Delta_G = - mean delta / (mean K lr)              5

Each coordinate of u is -1, 0 or 1, so Lion needs a learning rate 3 to 10 times smaller than AdamW's and a decay larger
by the same factor. There is no second moment to share: an upload has d + 1 numbers. Another method of this name (arXiv
2402.09941) averages the clients' momenta, sends updates as integers, and has no alignment or decay.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.directions.align import take_aligned_step
from fedadamw.directions.lion import lion
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)
    delta: Vector  # (d,) Delta_G, the last global direction


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    m: Vector  # (..., d)
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    k: Tensor  # (..., 1)


@dataclass(frozen=True, kw_only=True)
class FedLion(Algorithm[Server, Server, tuple[()], Local, Up]):
    """Lion on clients with the global direction in every step."""

    betas: tuple[float, float] = (0.9, 0.99)  # decay rates of the direction and of the momentum (each 0 to below 1)
    weight_decay: float = 0.03  # decoupled, per step, times lr (at least 0)
    alpha: float = 0.5  # weight of Delta_G in every local step (at least 0)

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (1e-4, 3e-4, 1e-3), "weight_decay": (1e-2, 3e-2, 1e-1), "alpha": (0.25, 0.5, 0.75)}

    def __post_init__(self) -> None:
        check(all(0 <= beta < 1 for beta in self.betas), f"betas={self.betas} must lie in [0, 1)")
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        check(self.alpha >= 0, f"alpha={self.alpha} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:
        return Local(down.x, torch.zeros_like(down.x), down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        u, m = lion(g, local.m, betas=self.betas)  # lines 1, 2
        y = take_aligned_step(local.y, u, down.delta, lr, alpha=self.alpha, weight_decay=self.weight_decay)  # line 3
        return Local(y, m, local.k + 1)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 4
        return Up(local.y - down.x, local.k), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 5
        return Server(server.x + up.delta, -up.delta / (up.k * lr))
