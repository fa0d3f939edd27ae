"""FedAdam (arXiv 2003.00295): SGD on clients; the server takes Adam's step along their mean update.

    server keeps x, m = 0, v = tau^2
    client:  y = x
             for k = 1..K, with g the gradient at y:
                 y = y - lr (g + lambda y)                                          1
             send delta = y - x                                                     2
    server:  D = mean delta
             m = beta1 m + (1 - beta1) D;  v = beta2 v + (1 - beta2) D*D            3
             x = x + server_lr m / (sqrt(v) + tau)                                  4

As in the paper, there are no bias corrections; v starts at tau^2, the smallest value that the paper allows. The code of
the published comparisons has beta2 = 0.98, tau = 0.01, v from 0 and a fixed server_lr of 0.01.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.directions.adamw import check_above_zero
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server."""

    x: Vector  # (d,)
    m: Vector  # (d,)
    v: Vector  # (d,)


class Down(NamedTuple):
    """Broadcast to the clients."""

    x: Vector  # (d,)


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class FedAdam(Algorithm[Server, Down, tuple[()], Local, Up]):
    """SGD on clients, Adam on the server."""

    betas: tuple[float, float] = (0.9, 0.99)  # decay rates of the server's moments (each 0 to below 1)
    tau: float = 1e-3  # added to the denominator; smaller is more adaptive (above 0)
    server_lr: float = 0.01  # learning rate of the server (above 0)
    weight_decay: float = 1e-3  # per local step, times lr (at least 0)

    elementwise: ClassVar = True
    adds_mean: ClassVar = False
    tuning: ClassVar = {
        "lr": (0.03, 0.1, 0.3),
        "server_lr": (3e-3, 1e-2, 3e-2),
        "weight_decay": (1e-4, 1e-3, 1e-2),
    }

    def __post_init__(self) -> None:
        check(all(0 <= beta < 1 for beta in self.betas), f"betas={self.betas} must lie in [0, 1)")
        check_above_zero("tau", self.tau)
        check(self.server_lr > 0, f"server_lr={self.server_lr} must be above 0")
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x), torch.full_like(x, self.tau**2))

    def broadcast(self, server: Server) -> Down:
        return Down(server.x)

    def client_start(self, down: Down, memory: tuple[()]) -> Local:
        return Local(down.x)

    def client_step(self, local: Local, down: Down, g: Vector, lr: Tensor) -> Local:
        return Local(local.y - lr * (g + self.weight_decay * local.y))  # line 1

    def client_finish(self, local: Local, down: Down, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 2
        return Up(local.y - down.x), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:
        beta1, beta2 = self.betas
        m = torch.lerp(server.m, up.delta, 1 - beta1)  # line 3
        v = torch.lerp(server.v, up.delta * up.delta, 1 - beta2)
        return Server(server.x + self.server_lr * m / (v.sqrt() + self.tau), m, v)  # line 4
