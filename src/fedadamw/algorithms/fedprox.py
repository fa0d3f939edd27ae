"""FedProx (arXiv 1812.06127): FedAvg with a pull of the clients towards the global model.

    client:  y = x
             for k = 1..K, with g the gradient at y:
                 y = y - lr (g + mu (y - x) + lambda y)                             1
             send delta = y - x                                                     2
    server:  x = x + mean delta                                                     3

With mu = 0 it is FedAvg. The paper leaves the local solver open; here it is SGD, as in the published comparisons.
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
class FedProx(Algorithm[Server, Server, tuple[()], Local, Up]):
    """SGD on clients with a pull towards the global model, averaged models."""

    mu: float = 0.01  # strength of the pull towards the global model (at least 0)
    weight_decay: float = 1e-3  # per step, times lr (at least 0)

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (0.03, 0.1, 0.3), "weight_decay": (1e-4, 1e-3, 1e-2), "mu": (1e-3, 1e-2, 1e-1)}

    def __post_init__(self) -> None:
        check(self.mu >= 0, f"mu={self.mu} must not be negative")
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x)

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:
        return Local(down.x)

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        y = local.y
        return Local(y - lr * (g + self.mu * (y - down.x) + self.weight_decay * y))  # line 1

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 2
        return Up(local.y - down.x), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 3
        return Server(server.x + up.delta)
