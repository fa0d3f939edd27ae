"""FedExP (arXiv 2301.09604): FedAvg whose server goes further along the mean update the less the clients agree.

    server keeps w, the mean x of its last two w
    client:  y = w
             for k = 1..K, with g the gradient at y:
                 y = y - lr (g + lambda y)                                          1
             send delta = y - w, |delta|^2                                          2
    server:  eta = max(1, mean |delta|^2 / (2 (|mean delta|^2 + eps)))              3
             w = w + eta mean delta;  x = mean of this w and the last               4

The longer steps make w oscillate, so the paper takes the mean of the last two for the model. That is x here, in every
round: evaluations, charts, checkpoints' `server.x` and exports see it, while clients start from w. The state has
w - x too, and a run resumes with both. In the first round the last w is the initial model.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.directions.adamw import check_above_zero
from fedadamw.validation import check
from fedadamw.vector import Vector, squared_norm


class Server(NamedTuple):
    """State of the server."""

    x: Vector  # (d,) the mean of the last two w
    ahead: Vector  # (d,) w - x, half of the last step


class Down(NamedTuple):
    """Broadcast to the clients."""

    x: Vector  # (d,) w


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    square: Tensor  # (..., 1) |delta|^2


@dataclass(frozen=True, kw_only=True)
class FedExP(Algorithm[Server, Down, tuple[()], Local, Up]):
    """SGD on clients; the server extrapolates their mean."""

    eps: float = 1e-3  # added to |mean delta|^2; larger is closer to FedAvg (above 0)
    weight_decay: float = 1e-3  # per step, times lr (at least 0)

    elementwise: ClassVar = True
    adds_mean: ClassVar = False
    tuning: ClassVar = {"lr": (0.03, 0.1, 0.3), "weight_decay": (1e-4, 1e-3, 1e-2), "eps": (1e-4, 1e-3, 1e-2)}

    def __post_init__(self) -> None:
        check_above_zero("eps", self.eps)
        check(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Down:
        return Down(server.x + server.ahead)

    def client_start(self, down: Down, memory: tuple[()]) -> Local:
        return Local(down.x)

    def client_step(self, local: Local, down: Down, g: Vector, lr: Tensor) -> Local:
        return Local(local.y - lr * (g + self.weight_decay * local.y))  # line 1

    def client_finish(self, local: Local, down: Down, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 2
        delta = local.y - down.x
        return Up(delta, squared_norm(delta)), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:
        eta = (up.square / (2 * (squared_norm(up.delta) + self.eps))).clamp(min=1.0)  # line 3
        ahead = eta * up.delta / 2
        return Server(server.x + server.ahead + ahead, ahead)  # line 4
