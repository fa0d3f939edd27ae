"""Ditto (arXiv 2012.04221): FedAvg, and beside it a model of each client's own, pulled towards the global one.

    server keeps x;  client i keeps v_i, which is x before its first round
    client:  y = x;  v = v_i
             for k = 1, 3, 5, ..., with g the gradient at y:
                 y = y - lr (g + lambda y)                                          1
             for k = 2, 4, 6, ..., with g the gradient at v:
                 v = v - lr (g + pull (v - x) + lambda v)                           2
             send delta = y - x;  keep v                                            3
    server:  x = x + mean delta                                                     4

Local steps alternate between the two models, so each takes half of them. `pull` is the paper's lambda: with 0 a client
learns alone; the larger it is, the nearer v_i stays to the global model. A client is scored by v_i.
"""

from dataclasses import dataclass
from math import inf
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)


class Memory(NamedTuple):
    """Memory of a client between its rounds."""

    v: Vector  # (..., d) its own model


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d) the model that takes the next step: the round's first, or the client's own
    other: Vector  # (..., d) the one that takes the step after it
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class Ditto(Algorithm[Server, Server, Memory, Local, Up]):
    """SGD on clients, for the global model and for one of their own in turn."""

    pull: float = 0.1  # strength of the pull of a client's own model towards the global one (at least 0)
    weight_decay: float = 1e-3  # per step, times lr (at least 0)

    elementwise: ClassVar = True
    own_model: ClassVar = "v"
    tuning: ClassVar = {"lr": (0.03, 0.1, 0.3), "weight_decay": (1e-4, 1e-3, 1e-2), "pull": (1e-2, 1e-1, 1.0)}

    def __post_init__(self) -> None:
        check(0 <= self.pull < inf, f"pull={self.pull} must not be negative, nor infinite")
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x)

    def broadcast(self, server: Server) -> Server:
        return server

    def client_init(self, down: Server) -> Memory:
        return Memory(down.x)

    def client_start(self, down: Server, memory: Memory) -> Local:
        return Local(down.x, memory.v, down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:  # lines 1, 2
        pull = self.pull * (local.k % 2)  # of the global model none
        y = local.y - lr * (g + pull * (local.y - down.x) + self.weight_decay * local.y)
        return Local(local.other, y, local.k + 1)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, Memory]:  # line 3
        odd = (local.k % 2).bool()  # then the client's own would be next
        y, v = torch.where(odd, local.other, local.y), torch.where(odd, local.y, local.other)
        return Up(y - down.x), Memory(v)

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 4
        return Server(server.x + up.delta)
