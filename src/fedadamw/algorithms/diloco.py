"""DiLoCo (arXiv 2311.08105): AdamW whose moments stay on the client, under Nesterov's momentum on the server.

    server keeps x, b = 0;  client i keeps m_i, v_i = 0, t_i = 0 between its rounds
    client:  y = x;  m = m_i;  v = v_i;  t = t_i                                    1
             for k = 1..K, with g the gradient at y:
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        2
                 t = t + 1;  m_hat = m/(1 - beta1^t);  v_hat = v/(1 - beta2^t)      3
                 y = y - lr (m_hat / (sqrt(v_hat) + eps) + lambda y)                4
             send delta = y - x;  keep m, v, t                                      5
    server:  D = - mean delta;  b = outer_momentum b + D                            6
             x = x - outer_lr (D + outer_momentum b)                                7

In the paper a handful of workers take part in every round. A client that is sampled now and then comes back with
moments of older rounds; with `moments: reset` it starts at m = v = 0, t = 0 and keeps nothing. With outer_lr 1 and
outer_momentum 0 besides, this is Local AdamW.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms.outer import OuterStep
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw, check_above_zero, check_adamw
from fedadamw.validation import check_one_of
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server."""

    x: Vector  # (d,)
    b: Vector  # (d,) momentum of the outer step


class Down(NamedTuple):
    """Broadcast to the clients."""

    x: Vector  # (d,)


class Memory(NamedTuple):
    """Memory of a client between its rounds."""

    m: Vector  # (..., d)
    v: Vector  # (..., d)
    t: Tensor  # (..., 1) steps in all of its rounds


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    t: Tensor  # (..., 1) gradients in the moments


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class DiLoCo(Algorithm[Server, Down, Memory | tuple[()], Local, Up]):
    """AdamW on clients that keep its state, an outer step with momentum on the server."""

    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # decoupled, per step, times lr (at least 0)
    moments: str = "keep"  # m, v and their step count between a client's rounds (one of keep, reset)
    outer_lr: float = 0.7  # learning rate of the server's step (above 0)
    outer_momentum: float = 0.9  # decay rate of the server's momentum b (0 to below 1)
    nesterov: bool = True  # the server looks ahead along b, as torch.optim.SGD does; false: plain momentum
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting

    elementwise: ClassVar = True
    adds_mean: ClassVar = False
    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "outer_lr": (0.4, 0.7, 1.0), "weight_decay": (1e-3, 1e-2, 1e-1)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check_one_of("moments", self.moments, ("keep", "reset"))
        _ = self.outer  # checks its settings

    @cached_property
    def outer(self) -> OuterStep:
        """The server's step."""
        return OuterStep(lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.nesterov)

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Down:
        return Down(server.x)

    def client_init(self, down: Down) -> Memory | tuple[()]:
        zero = torch.zeros_like(down.x)
        return Memory(zero, zero, down.x.new_zeros(1)) if self.moments == "keep" else ()

    def client_start(self, down: Down, memory: Memory | tuple[()]) -> Local:  # line 1
        if not memory:
            zero = torch.zeros_like(down.x)
            return Local(down.x, Moments(zero, zero), down.x.new_zeros(1))
        return Local(down.x, Moments(memory.m, memory.v), memory.t)

    def client_step(self, local: Local, down: Down, g: Vector, lr: Tensor) -> Local:
        t = local.t + 1
        u, moments = adamw(g, local.moments, t, t, betas=self.betas, eps=self.eps, noise=self.noise)  # lines 2, 3
        return Local(local.y - lr * (u + self.weight_decay * local.y), moments, t)  # line 4

    def client_finish(self, local: Local, down: Down, lr: Tensor) -> tuple[Up, Memory | tuple[()]]:  # line 5
        memory = Memory(*local.moments, local.t) if self.moments == "keep" else ()
        return Up(local.y - down.x), memory

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # lines 6, 7
        return Server(*self.outer.take(server.x, server.b, up.delta))
