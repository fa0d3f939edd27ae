"""FedAvg (arXiv 1602.05629): SGD on clients, averaged models.

client:  y = x
         for k = 1..K, with g the gradient at y:
             y = y - lr (g + lambda y)                                          1
         send delta = y - x                                                     2
server:  x = x + mean delta                                                     3
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class FedAvg(Algorithm[Server, Server, tuple[()], Local, Up]):
    """SGD on clients, averaged models."""

    weight_decay: float = 1e-3  # per step, times lr (at least 0)

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (0.03, 0.1, 0.3), "weight_decay": (1e-4, 1e-3, 1e-2)}

    def __post_init__(self) -> None:
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x)

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:
        return Local(down.x)

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        return Local(local.y - lr * (g + self.weight_decay * local.y))  # line 1

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 2
        return Up(local.y - down.x), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 3
        return Server(server.x + up.delta)
