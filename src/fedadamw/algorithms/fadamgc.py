"""FAdamGC (arXiv 2502.02727): AdamW on clients, whose gradients are corrected for drift before they enter the moments.

    server keeps x, c = 0;  client i keeps c_i = 0 between its rounds
    client:  y = x;  m = v = 0
             for k = 1..K, with g the gradient at y:
                 h = g - c_i + c                                                    1
                 m = beta1 m + (1 - beta1) h;  v = beta2 v + (1 - beta2) h*h        2
                 y = y - lr (m_hat / (sqrt(v_hat) + eps) + lambda y)                3
             c_i' = mean of the g                                                   4
             send delta = y - x, dc = c_i' - c_i;  keep c_i'                        5
    server:  x = x + server_lr mean delta                                           6
             c = c + S/N mean dc                                                    7

If clients are weighted uniformly, line 7 keeps c = mean c_i, as SCAFFOLD's. We had no access to the paper's text, but
to its abstract and a public restatement of its formulas. Lines 1, 4 and 6 are the restatement's. That has no bias
corrections and takes the running maximum of v (AMSGrad); here steps are those of Local AdamW, so that only the
correction differs.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw, check_above_zero, check_adamw
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)
    c: Vector  # (d,) the mean of all clients' mean gradients


class Memory(NamedTuple):
    """Memory of a client between its rounds."""

    c: Vector  # (..., d) its mean gradient when it last took part


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    c: Vector  # (..., d) from its memory
    total: Vector  # (..., d) sum of this round's gradients
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    dc: Vector  # (..., d)


@dataclass(frozen=True, kw_only=True)
class FAdamGC(Algorithm[Server, Server, Memory, Local, Up]):
    """AdamW on clients by gradients that are corrected for drift."""

    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # decoupled, per step, times lr (at least 0)
    server_lr: float = 1.0  # learning rate of the server (above 0)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting

    elementwise: ClassVar = True
    changes: ClassVar = ("delta", "dc")
    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "weight_decay": (1e-3, 1e-2, 1e-1)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check(self.server_lr > 0, f"server_lr={self.server_lr} must be above 0")

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_init(self, down: Server) -> Memory:
        return Memory(torch.zeros_like(down.x))

    def client_start(self, down: Server, memory: Memory) -> Local:
        zero = torch.zeros_like(down.x)
        return Local(down.x, Moments(zero, zero), memory.c, zero, down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        k = local.k + 1
        corrected = g - local.c + down.c  # line 1
        u, moments = adamw(corrected, local.moments, k, k, betas=self.betas, eps=self.eps, noise=self.noise)  # line 2
        y = local.y - lr * (u + self.weight_decay * local.y)  # line 3
        return Local(y, moments, local.c, local.total + g, k)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, Memory]:  # lines 4, 5
        c = local.total / local.k
        return Up(local.y - down.x, c - local.c), Memory(c)

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # lines 6, 7
        return Server(server.x + self.server_lr * up.delta, server.c + participation * up.dc)
