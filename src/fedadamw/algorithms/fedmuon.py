"""FedMuon (arXiv 2510.27403): clients step along orthogonalized momenta, which the server averages and broadcasts.

    server keeps x, Delta_G = 0, M = 0 of each matrix
    client:  y = x;  m = M for matrices, 0 elsewhere;  v = 0                        1
             for k = 1..K, with g the gradient at y:
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        2
                 u = U V^T of each matrix' m = U S V^T, scaled;  AdamW's elsewhere  3
                 y = y - lr ((1 - alpha) u + alpha Delta_G + lambda y)              4
             send delta = y - x, m of the matrices, K                               5
    server:  x = x + mean delta;  Delta_G = - mean delta / (mean K lr);  M = mean m 6

Matrices are the hidden layers' weights; a convolution is read as output channels by the rest. Embeddings, the head and
flat tensors take AdamW steps with fresh moments, as Muon's authors advise (the code of FedMuon orthogonalizes
embeddings and head too). The orthogonal direction has AdamW's size, so one lr fits both (directions/muon.py).

rank: send thin sketches of the momenta in place of all their numbers (directions/sketch.py). The paper's code sends a
truncated singular value decomposition, which the server has to rebuild for each client; sketches are averaged directly.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw, check_above_zero, check_adamw
from fedadamw.directions.align import take_aligned_step
from fedadamw.directions.muon import as_matrix, muon
from fedadamw.directions.sketch import Sketch, decode, encode
from fedadamw.validation import check
from fedadamw.vector import Layout, Vector

HIDDEN = {"query", "key", "value", "qkv", "projection", "mlp", "conv", "lora-a"}  # kinds of blocks


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,) the global model
    delta: Vector  # (d,) Delta_G, the last global direction
    m: Tensor  # the matrices' momenta, whole or as sketches, concatenated


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    m: Tensor  # the matrices' momenta, whole or as L and R of their sketches
    k: Tensor  # (..., 1)


@dataclass(frozen=True, kw_only=True)
class FedMuon(Algorithm[Server, Server, tuple[()], Local, Up]):
    """Muon on clients with averaged momenta and global alignment."""

    blocks: Blocks  # their kinds tell which tensors are matrices of hidden layers
    betas: tuple[float, float] = (0.95, 0.999)  # decay rates of the momentum, and of v elsewhere (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 0.01  # decoupled, per step, times lr (at least 0)
    alpha: float = 0.5  # weight of Delta_G in every local step; the client's own has 1 - alpha (0 to below 1)
    steps: int = 5  # Newton-Schulz iterations (at least 1)
    rank: int | None = None  # rank of the momenta's sketches that travel; null sends them whole (at least 1)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting

    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "weight_decay": (1e-3, 1e-2, 1e-1), "alpha": (0.25, 0.5, 0.75)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check(0 <= self.alpha < 1, f"alpha={self.alpha} must lie in [0, 1)")
        check(self.steps >= 1, f"steps={self.steps} must be at least 1")
        check(self.rank is None or self.rank >= 1, f"rank={self.rank} must be at least 1, or not set")
        check_kinds("fedmuon", self.blocks)

    @cached_property
    def matrices(self) -> Layout:
        """The names and shapes of the tensors that take Muon's steps."""
        return find_matrices(self.blocks)

    def server_init(self, x: Vector) -> Server:
        size = self.matrices.d if self.rank is None else 2 * self._thin.d
        return Server(x, torch.zeros_like(x), x.new_zeros(size))

    def broadcast(self, server: Server) -> Server:
        return server

    def client_start(self, down: Server, memory: tuple[()]) -> Local:  # line 1
        zero = torch.zeros_like(down.x)
        return Local(down.x, Moments(self._momenta(down.m, like=down.x), zero), down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server, g: Vector, lr: Tensor) -> Local:
        k = local.k + 1
        u, moments = adamw(g, local.moments, k, k, betas=self.betas, eps=self.eps, noise=self.noise)  # line 2
        u = muon(u, moments.m, self.blocks.layout, self.matrices.names, steps=self.steps)  # line 3
        u = (1 - self.alpha) * u
        y = take_aligned_step(local.y, u, down.delta, lr, alpha=self.alpha, weight_decay=self.weight_decay)  # line 4
        return Local(y, moments, k)

    def client_finish(self, local: Local, down: Server, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 5
        momenta = self.blocks.layout.views(local.moments.m)
        parts = [as_matrix(momenta[name], self.matrices, name) for name in self.matrices.names]
        if self.rank is not None:
            known = self._sketches(down.m)
            parts = [torch.cat(encode(m, k), dim=-2) for m, k in zip(parts, known, strict=True)]
        m = torch.cat([local.y[..., :0], *(part.flatten(-2) for part in parts)], dim=-1)
        return Up(local.y - down.x, m, local.k), ()

    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:  # line 6
        m = up.m
        if self.rank is not None:
            received = zip(self._pairs(up.m), self._sketches(server.m), strict=True)
            after = [decode(*pair, known) for pair, known in received]
            thin = [torch.cat((s.p, s.q)) for s in after], [torch.cat((s.left, s.right)) for s in after]
            m = torch.cat([up.m[:0], *(part.flatten() for part in (*thin[0], *thin[1]))])
        return Server(server.x + up.delta, -up.delta / (up.k * lr), m)

    @cached_property
    def _thin(self) -> Layout:
        """The layout of L above R of each matrix: (rows + columns, r), r at most the smaller side."""
        sides = [(shape[0], shape[1:].numel()) for shape in self.matrices.shapes]
        shapes = tuple(torch.Size((m + n, min(self.rank or m, m, n))) for m, n in sides)
        return Layout(self.matrices.names, shapes)

    def _pairs(self, packed: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Unpack the two thin matrices (rows, r), (columns, r) of each matrix, from a vector (thin.d,)."""
        thin, rows = self._thin.views(packed).values(), [shape[0] for shape in self.matrices.shapes]
        return [(t[:n], t[n:]) for n, t in zip(rows, thin, strict=True)]

    def _sketches(self, packed: Tensor) -> list[Sketch]:
        """Unpack the sketch of each matrix: all bases, then all L and R."""
        bases, ends = packed.chunk(2)
        return [Sketch(*b, *e) for b, e in zip(self._pairs(bases), self._pairs(ends), strict=True)]

    def _momenta(self, packed: Tensor, *, like: Vector) -> Vector:
        """Return a vector (d,) with the momenta of the matrices, and zero elsewhere."""
        out = torch.zeros_like(like)
        places = self.blocks.layout.views(out)
        if self.rank is None:
            momenta = list(self.matrices.views(packed).values())
        else:
            momenta = [known.matrix() for known in self._sketches(packed)]
        for name, m in zip(self.matrices.names, momenta, strict=True):
            places[name].copy_(m.reshape(places[name].shape))
        return out


def find_matrices(blocks: Blocks) -> Layout:
    """Return the names and shapes of the hidden layers' matrices."""
    rows = zip(blocks.layout.names, blocks.layout.shapes, blocks.kinds, strict=True)
    chosen = {name: shape for name, shape, kind in rows if kind in HIDDEN and len(shape) > 1}
    return Layout(tuple(chosen), tuple(chosen.values()))


def check_kinds(name: str, blocks: Blocks) -> None:
    """Raise InputError if the blocks do not tell which tensors are matrices, as algorithm `name` needs."""
    check("own" not in blocks.kinds, f"{name} needs a named granularity, not a function, to recognize matrices")
