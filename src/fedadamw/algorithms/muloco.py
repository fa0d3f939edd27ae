"""MuLoCo (arXiv 2505.23725): DiLoCo with Muon's steps; its momentum stays on the client.

    server keeps x, b = 0;  client i keeps m_i, v_i = 0, t_i = 0 between its rounds
    client:  y = x;  m = m_i;  v = v_i;  t = t_i                                    1
             for k = 1..K, with g the gradient at y:
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        2
                 t = t + 1;  u = AdamW's direction, of m/(1 - beta1^t), v/(1 - beta2^t)
                 u = U V^T of each matrix' m = U S V^T, scaled;  as it is elsewhere 3
                 y = y - lr (u + lambda y)                                          4
             send delta = y - x;  keep m, t, and v but for matrices                 5
    server:  D = - mean delta;  b = outer_momentum b + D                            6
             x = x - outer_lr (D + outer_momentum b)                                7

Matrices, their scale and the missing Nesterov step of m are those of fedmuon.py. A client's memory is smaller than
DiLoCo's, since Muon needs no v.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms.fedmuon import check_kinds, find_matrices
from fedadamw.algorithms.outer import OuterStep
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw, check_above_zero, check_adamw
from fedadamw.directions.muon import muon
from fedadamw.validation import check
from fedadamw.vector import Layout, Vector


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
    v: Tensor  # of all tensors but matrices, concatenated
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
class MuLoCo(Algorithm[Server, Down, Memory, Local, Up]):
    """Muon on clients that keep its state, an outer step with momentum on the server."""

    blocks: Blocks  # their kinds tell which tensors are matrices of hidden layers
    betas: tuple[float, float] = (0.95, 0.999)  # decay rates of the momentum, and of v elsewhere (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # decoupled, per step, times lr (at least 0)
    steps: int = 5  # Newton-Schulz iterations (at least 1)
    outer_lr: float = 0.7  # learning rate of the server's step (above 0)
    outer_momentum: float = 0.9  # decay rate of the server's momentum b (0 to below 1)
    nesterov: bool = True  # the server looks ahead along b, as torch.optim.SGD does; false: plain momentum
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting

    adds_mean: ClassVar = False
    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "outer_lr": (0.4, 0.7, 1.0), "weight_decay": (1e-3, 1e-2, 1e-1)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check(self.steps >= 1, f"steps={self.steps} must be at least 1")
        _ = self.outer  # checks its settings
        check_kinds("muloco", self.blocks)

    @cached_property
    def matrices(self) -> Layout:
        """The names and shapes of the tensors that take Muon's steps."""
        return find_matrices(self.blocks)

    @cached_property
    def outer(self) -> OuterStep:
        """The server's step."""
        return OuterStep(lr=self.outer_lr, momentum=self.outer_momentum, nesterov=self.nesterov)

    def server_init(self, x: Vector) -> Server:
        return Server(x, torch.zeros_like(x))

    def broadcast(self, server: Server) -> Down:
        return Down(server.x)

    def client_init(self, down: Down) -> Memory:
        zero = torch.zeros_like(down.x)
        return Memory(zero, self._pack(zero), down.x.new_zeros(1))

    def client_start(self, down: Down, memory: Memory) -> Local:  # line 1
        return Local(down.x, Moments(memory.m, self._unpack(memory.v)), memory.t)

    def client_step(self, local: Local, down: Down, g: Vector, lr: Tensor) -> Local:
        t = local.t + 1
        u, moments = adamw(g, local.moments, t, t, betas=self.betas, eps=self.eps, noise=self.noise)  # line 2
        u = muon(u, moments.m, self.blocks.layout, self.matrices.names, steps=self.steps)  # line 3
        return Local(local.y - lr * (u + self.weight_decay * local.y), moments, t)  # line 4

    def client_finish(self, local: Local, down: Down, lr: Tensor) -> tuple[Up, Memory]:  # line 5
        return Up(local.y - down.x), Memory(local.moments.m, self._pack(local.moments.v), local.t)

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # lines 6, 7
        return Server(*self.outer.take(server.x, server.b, up.delta))

    @cached_property
    def _sizes(self) -> list[tuple[int, bool]]:
        """The length of each tensor, and whether its v is kept."""
        layout = self.blocks.layout
        return [(n, name not in self.matrices.names) for name, n in zip(layout.names, layout.sizes, strict=True)]

    def _pack(self, v: Vector) -> Tensor:
        """Return the numbers of v (..., d) that are of no matrix."""
        parts = v.split([n for n, _ in self._sizes], dim=-1)
        return torch.cat([v[..., :0], *(part for part, (_, kept) in zip(parts, self._sizes, strict=True) if kept)], -1)

    def _unpack(self, packed: Tensor) -> Vector:
        """Return v (..., d) with the packed numbers in their places, and zero for matrices."""
        parts = iter(packed.split([n for n, kept in self._sizes if kept], dim=-1))
        zero = packed.new_zeros(*packed.shape[:-1], 1)
        return torch.cat(
            [packed[..., :0], *(next(parts) if kept else zero.expand(*zero.shape[:-1], n) for n, kept in self._sizes)],
            dim=-1,
        )
