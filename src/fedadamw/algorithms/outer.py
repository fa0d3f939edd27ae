"""The outer step (arXiv 2311.08105): SGD with momentum on the server, whose gradient is minus the clients' mean change.

    D = - mean delta
    b = momentum b + D
    x = x - lr (D + momentum b);  without nesterov: x - lr b

This is `torch.optim.SGD`. Without a step of its own the server adds the mean: lr 1, momentum 0.
"""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.validation import check
from fedadamw.vector import Vector


@dataclass(frozen=True, kw_only=True)
class OuterStep:
    """The server's step along minus the clients' mean change: SGD with momentum, by default DiLoCo's.

    lr: above 0 and finite; 1 is the mean itself. momentum: decay rate of b, 0 to below 1. nesterov: look ahead along b.
    Raises InputError if one is out of range.
    """

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True

    def __post_init__(self) -> None:
        check(_is_number(self.lr) and 0 < self.lr < inf, f"the outer step's lr={self.lr!r} must be above 0 and finite")
        valid = _is_number(self.momentum) and 0 <= self.momentum < 1
        check(valid, f"the outer step's momentum={self.momentum!r} must lie in [0, 1)")

    def take(self, x: Vector, b: Vector, delta: Vector) -> tuple[Vector, Vector]:
        """Return the model (d,) and the momentum (d,) after the step, from the clients' mean change `delta` (d,)."""
        gradient = -delta
        b = self.momentum * b + gradient
        direction = gradient + self.momentum * b if self.nesterov else b
        return x - self.lr * direction, b


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_takes_outer_step(name: str, *, adds_mean: bool, server_lr: object) -> None:
    """Raise InputError if the server of algorithm `name` has a step of its own, which the outer one would replace."""
    what = "training.outer is the server's step"
    check(adds_mean, f"{what}; the server of {name} has one of its own")
    check(server_lr == 1, f"{what}; set algorithm.server_lr=1 (not {server_lr}) and training.outer.lr instead")


class ServerSide(Protocol):
    """The functions of an algorithm that a server calls; see algorithm.py."""

    def server_init(self, x: Vector) -> AnyState:
        """Return the server's state before the first round, for the initial model `x` (d,)."""

    def broadcast(self, server: AnyState) -> AnyState:
        """Return the message that each client receives."""

    def server_update(self, server: AnyState, up: AnyState, lr: Tensor, participation: Tensor) -> AnyState:
        """Return the server's state after a round."""


class Server(NamedTuple):
    """State of the server with an outer step around an algorithm."""

    x: Vector  # (d,) the global model
    b: Vector  # (d,) the outer step's momentum
    inner: AnyState  # the algorithm's Server; its x is empty, since `x` has it


class WithOuterStep:
    """The server of an algorithm that adds the clients' mean, with the outer step in place of that.

    What else the algorithm's server keeps (directions, moments, counts) is as without it, and so are its clients.
    """

    def __init__(self, algorithm: AnyAlgorithm, step: OuterStep) -> None:
        server_lr = getattr(algorithm, "server_lr", 1.0)
        check_takes_outer_step(type(algorithm).__name__, adds_mean=algorithm.adds_mean, server_lr=server_lr)
        self.algorithm, self.step = algorithm, step

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x), _without_model(self.algorithm.server_init(x)))

    def broadcast(self, server: Server) -> AnyState:
        return self.algorithm.broadcast(_with_model(server))

    def server_update(self, server: Server, up: AnyState, lr: Tensor, participation: Tensor) -> Server:
        inner = _without_model(self.algorithm.server_update(_with_model(server), up, lr, participation))
        return Server(*self.step.take(server.x, server.b, up.delta), inner)


def take_directions(moved: AnyState, aimed: AnyState) -> AnyState:
    """Return a state of the server: the model and outer momentum of `moved`, and all else of `aimed`."""
    if isinstance(moved, Server):
        return moved._replace(inner=aimed.inner)
    return aimed._replace(x=moved.x)


def _with_model(server: Server) -> AnyState:
    """Return the algorithm's state."""
    return server.inner._replace(x=server.x)


def _without_model(inner: AnyState) -> AnyState:
    """Return the algorithm's state without its x, which is kept once."""
    return inner._replace(x=inner.x.new_zeros(0))
