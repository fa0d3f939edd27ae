"""Blocks: which coordinates of the flat vector share one number of v.

A parameter's tensor is cut with strides only, never with an index vector, so that a cut costs no memory and
a mean is one reduction whatever the size of the model.
"""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedadamw.blocks.cuts import GRANULARITIES, Cut, Parameter, cut, parameters_of, row
from fedadamw.validation import InputError
from fedadamw.vector import Layout, Vector

BlockRule = Callable[[str, Tensor], int]  # (name, parameter) -> equal consecutive blocks it is cut into


class BlockRow(NamedTuple):
    """One line of `Blocks.table()`."""

    parameter: str
    kind: str  # query, key, value, qkv, projection, mlp, embedding, head, conv, vector, ...
    shape: tuple[int, ...]
    blocks: int


@dataclass(frozen=True)
class Blocks:
    """A cut of a model's d trainable numbers into B blocks: every coordinate lies in exactly one, and none is empty.

    Source: FedAdamW (arXiv 2510.27486), after Adam-mini (arXiv 2406.16793): near-block-diagonal Hessians.
    """

    layout: Layout
    kinds: tuple[str, ...]  # one a parameter
    cuts: tuple[tuple[Cut, ...], ...]  # (parameters, pieces of the parameter)

    @staticmethod
    def of(model: nn.Module, granularity: str | BlockRule = "paper") -> "Blocks":
        """Cut `model` by its modules and its configuration.

        granularity: `paper` (a head, a neuron, a token row), `coarse`, `tensor` (one a tensor), `coordinate`
        (B = d), or your own function (name, parameter) -> number of equal consecutive blocks of it.
        A matrix that no rule knows gets one block a row, and one warning names all such matrices.
        """
        layout = Layout.of(model)
        parameters = parameters_of(model)
        if callable(granularity):
            own = tuple((_own_cut(granularity, p),) if p.tensor.numel() else () for p in parameters)
            return Blocks(layout, ("own",) * len(own), own)
        if granularity not in GRANULARITIES:
            raise InputError(
                f"granularity={granularity!r} is unknown; use one of {', '.join(GRANULARITIES)}, "
                "or a function (name, parameter) -> number of blocks"
            )
        unknown = [p.name for p in parameters if p.kind == "unknown"]
        if unknown and granularity in ("paper", "coarse"):
            warnings.warn(f"no block rule knows {', '.join(unknown)}: one block a row", stacklevel=2)
        cuts = tuple(cut(p, granularity) for p in parameters)
        return Blocks(layout, tuple(p.kind for p in parameters), cuts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many blocks each parameter has."""
        return tuple(sum(piece.total for piece in cuts) for cuts in self.cuts)

    @property
    def B(self) -> int:  # noqa: N802  (the paper's symbol)
        """The number of blocks."""
        return sum(self.counts)

    @property
    def d(self) -> int:
        """The number of coordinates."""
        return self.layout.d

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the cut: two sides with the same one mean the same by their block means."""
        return hashlib.sha256(f"{self.layout.fingerprint} {self.cuts}".encode()).hexdigest()[:16]

    def mean(self, v: Vector) -> Tensor:
        """Block means (..., B) of `v` (..., d)."""
        means = [
            _columns(part, piece).mean((-3, -1)).flatten(-2)
            for part, cuts in zip(v.split(self.layout.sizes, dim=-1), self.cuts, strict=True)
            for piece in cuts
        ]
        return torch.cat(means, dim=-1) if means else v.new_zeros(*v.shape[:-1], 0)

    def expand(self, b: Tensor) -> Vector:
        """A vector (..., d) in which every coordinate has the number of its block in `b` (..., B)."""
        out = b.new_empty(*b.shape[:-1], self.d)
        numbers = b.split(self.counts, dim=-1)
        for part, own, cuts in zip(out.split(self.layout.sizes, dim=-1), numbers, self.cuts, strict=True):
            for piece, block in zip(cuts, own.split([c.total for c in cuts], dim=-1), strict=True):
                columns = _columns(part, piece)
                columns.copy_(block.unflatten(-1, (piece.groups, piece.blocks)).unsqueeze(-1).unsqueeze(-3))
        return out

    def table(self) -> list[BlockRow]:
        """One row a parameter: its name, class, shape and number of blocks."""
        rows = zip(self.layout.names, self.kinds, self.layout.shapes, self.counts, strict=True)
        return [BlockRow(name, kind, tuple(shape), blocks) for name, kind, shape, blocks in rows]

    def spans(self) -> dict[str, slice]:
        """Where each parameter's numbers lie in a block vector (B,)."""
        ends = list(accumulate(self.counts, initial=0))
        return {n: slice(a, b) for n, a, b in zip(self.layout.names, ends, ends[1:], strict=False)}


def _columns(part: Vector, piece: Cut) -> Tensor:
    """The coordinates of `piece` in one parameter's numbers (..., n), as a view (..., groups, outer, blocks, inner)."""
    rows = part.unflatten(-1, (piece.groups, piece.outer, part.shape[-1] // (piece.groups * piece.outer)))
    width = piece.blocks * piece.inner
    columns: Tensor = rows.narrow(-1, piece.start, width).unflatten(-1, (piece.blocks, piece.inner))
    return columns


def _own_cut(rule: BlockRule, parameter: Parameter) -> Cut:
    """The cut that a user's own function asks for."""
    blocks = rule(parameter.name, parameter.tensor)
    n = parameter.tensor.numel()
    if not isinstance(blocks, int) or blocks < 1 or n % blocks:
        raise InputError(f"{blocks!r} blocks for {parameter.name!r}: give a divisor of its {n:,} numbers")
    return row(blocks, n // blocks)
