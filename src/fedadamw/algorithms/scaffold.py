"""SCAFFOLD (arXiv 1910.06378), option II: control variates c that correct the clients' drift in every step.

    server keeps x, c = 0;  client i keeps c_i = 0 between its rounds
    client:  y = x
             for k = 1..K, with g the gradient at y:
                 y = y - lr (g + lambda y - c_i + c)                                1
             c_i' = c_i - c + (x - y) / (K lr)                                      2
             send delta = y - x, dc = c_i' - c_i;  keep c_i'                        3
    server:  x = x + server_lr mean delta                                           4
             c = c + S/N mean dc                                                    5

If clients are weighted uniformly, line 5 keeps c = mean c_i, and the correction has no bias. Clients that never took
part have c_i = 0. In some published code the correction has no gradient (a scalar is added to the loss through
`.item()`), which makes it FedAvg; here the correction is in the step.
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
    c: Vector  # (d,) the mean of all clients' control variates


class Memory(NamedTuple):
    """Memory of a client between its rounds."""

    c: Vector  # (..., d) its control variate


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    c: Vector  # (..., d) its control variate
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    dc: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class Scaffold(Algorithm[Server, Server, Memory, Local, Up]):
    """SGD on clients, corrected by control variates."""

    server_lr: float = 1.0  # learning rate of the server (above 0)
    weight_decay: float = 1e-3  # per step, times lr (at least 0)

    elementwise: ClassVar = True
    changes: ClassVar = ("delta", "dc")
    tuning: ClassVar = {"lr": (0.03, 0.1, 0.3), "weight_decay": (1e-4, 1e-3, 1e-2)}

    def __post_init__(self) -> None:
        check(self.server_lr > 0, f"server_lr={self.server_lr} must be above 0")
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_init(self, down: Server) -> Memory:
        return Memory(torch.zeros_like(down.x))

    def client_start(self, down: Server, memory: Memory) -> Local:
        return Local(down.x, memory.c, down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:  # line 1
        y = local.y - lr * (g + self.weight_decay * local.y - local.c + down.c)
        return Local(y, local.c, local.k + 1)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, Memory]:  # lines 2, 3
        c = local.c - down.c + (down.x - local.y) / (local.k * lr)
        return Up(local.y - down.x, c - local.c), Memory(c)

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # lines 4, 5
        return Server(server.x + self.server_lr * up.delta, server.c + participation * up.dc)
