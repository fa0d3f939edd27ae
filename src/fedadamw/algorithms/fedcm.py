"""FedCM (arXiv 2106.10874): SGD on clients along a mixture of their gradient and the last global direction.

    server keeps x, Delta_G = 0
    client:  y = x
             for k = 1..K, with g the gradient at y:
                 y = y - lr (a g + (1 - a) Delta_G + lambda y)                      1
             send delta = y - x, K                                                  2
    server:  x = x + mean delta;  Delta_G = - mean delta / (mean K lr)              3

With a = 1 it is FedAvg. In the first round Delta_G is 0, so the step length is a times FedAvg's. The paper does not
say where weight decay goes; public implementations add it to the mixture, as here.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)
    delta: Vector  # (d,) Delta_G, the last global direction


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    k: Tensor  # (..., 1)


@dataclass(frozen=True, kw_only=True)
class FedCM(Algorithm[Server, Server, tuple[()], Local, Up]):
    """SGD on clients with the global direction as momentum."""

    a: float = 0.1  # weight of the client's own gradient; the global direction has 1 - a (above 0, at most 1)
    weight_decay: float = 1e-3  # per step, times lr (at least 0)

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (0.03, 0.1, 0.3), "weight_decay": (1e-4, 1e-3, 1e-2), "a": (0.05, 0.1, 0.3)}

    def __post_init__(self) -> None:
        check(0 < self.a <= 1, f"a={self.a} must lie in (0, 1]")
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:
        return Local(down.x, down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:  # line 1
        direction = self.a * g + (1 - self.a) * down.delta + self.weight_decay * local.y
        return Local(local.y - lr * direction, local.k + 1)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 2
        return Up(local.y - down.x, local.k), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 3
        return Server(server.x + up.delta, -up.delta / (up.k * lr))
