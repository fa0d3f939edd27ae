"""Blocks: groups of coordinates of the flat vector that share one number of v.

A parameter's tensor is cut by strides, never by an index vector, so a cut needs no memory and a mean is one reduction
per piece, whatever the size of the model.
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

BlockRule = Callable[[str, Tensor], int]  # (name, parameter) -> number of equal consecutive blocks


class BlockRow(NamedTuple):
    """One line of `Blocks.table()`."""

    parameter: str
    kind: str  # query, key, value, qkv, projection, mlp, embedding, head, conv, vector, ...
    shape: tuple[int, ...]
    blocks: int


@dataclass(frozen=True)
class Blocks:
    """A partition of a model's d trainable numbers into B blocks: every coordinate is in exactly one, none is empty.

    Make it with `Blocks.of(model)`.
    Source: FedAdamW (arXiv 2510.27486), after Adam-mini (arXiv 2406.16793): near-block-diagonal Hessians.
    """

    layout: Layout
    kinds: tuple[str, ...]  # one per parameter
    cuts: tuple[tuple[Cut, ...], ...]  # (parameters, pieces of the parameter)

    @staticmethod
    def of(model: nn.Module, granularity: str | BlockRule = "paper") -> "Blocks":
        """Return the blocks of `model`, from its modules and its configuration.

        granularity: `paper` (one block per head, neuron or token row), `coarse` (per head or layer), `tensor` (per
        tensor), `coordinate` (B = d), or a function (name, parameter) -> number of equal consecutive blocks.

        A matrix without a rule gets one block per row, and one warning names all such matrices. Raises InputError for
        an unknown granularity, a number of blocks that does not divide the parameter, or a complex parameter.
        """
        layout = Layout.of(model)
        parameters = parameters_of(model)
        if callable(granularity):
            custom = tuple((_cut_by_function(granularity, p),) if p.tensor.numel() else () for p in parameters)
            return Blocks(layout, ("own",) * len(custom), custom)
        if granularity not in GRANULARITIES:
            raise InputError(
                f"granularity={granularity!r} is unknown; use one of {', '.join(GRANULARITIES)}, "
                "or a function (name, parameter) -> number of blocks"
            )
        unknown = [p.name for p in parameters if p.kind == "unknown"]
        if unknown and granularity in ("paper", "coarse"):
            warnings.warn(f"no block rule knows {', '.join(unknown)}: one block per row", stacklevel=2)
        cuts = tuple(cut(p, granularity) for p in parameters)
        return Blocks(layout, tuple(p.kind for p in parameters), cuts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The number of blocks of each parameter."""
        return tuple(sum(piece.total for piece in cuts) for cuts in self.cuts)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of coordinates of each block, (B,)."""
        return tuple(piece.outer * piece.inner for cuts in self.cuts for piece in cuts for _ in range(piece.total))

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
        """A digest of names, shapes and cuts: block means can be exchanged only if it is equal."""
        return hashlib.sha256(f"{self.layout.fingerprint} {self.cuts}".encode()).hexdigest()[:16]

    def mean(self, v: Vector) -> Tensor:
        """Return the block means (..., B) of `v` (..., d)."""
        means = [
            _columns(part, piece).mean((-3, -1)).flatten(-2)
            for part, cuts in zip(v.split(self.layout.sizes, dim=-1), self.cuts, strict=True)
            for piece in cuts
        ]
        return torch.cat(means, dim=-1) if means else v.new_zeros(*v.shape[:-1], 0)

    def expand(self, b: Tensor) -> Vector:
        """Return a vector (..., d) in which every coordinate has the value of its block in `b` (..., B)."""
        out = b.new_empty(*b.shape[:-1], self.d)
        numbers = b.split(self.counts, dim=-1)
        for part, values, cuts in zip(out.split(self.layout.sizes, dim=-1), numbers, self.cuts, strict=True):
            for piece, block in zip(cuts, values.split([c.total for c in cuts], dim=-1), strict=True):
                columns = _columns(part, piece)
                columns.copy_(block.unflatten(-1, (piece.groups, piece.blocks)).unsqueeze(-1).unsqueeze(-3))
        return out

    def table(self) -> list[BlockRow]:
        """Return one row per parameter: its name, kind, shape and number of blocks."""
        rows = zip(self.layout.names, self.kinds, self.layout.shapes, self.counts, strict=True)
        return [BlockRow(name, kind, tuple(shape), blocks) for name, kind, shape, blocks in rows]

    def spans(self) -> dict[str, slice]:
        """Return the slice of each parameter in a block vector (B,)."""
        ends = list(accumulate(self.counts, initial=0))
        return {n: slice(a, b) for n, a, b in zip(self.layout.names, ends, ends[1:], strict=False)}


def _columns(part: Vector, piece: Cut) -> Tensor:
    """Return the coordinates of `piece` in a parameter's numbers (..., n) as (..., groups, outer, blocks, inner)."""
    rows = part.unflatten(-1, (piece.groups, piece.outer, part.shape[-1] // (piece.groups * piece.outer)))
    width = piece.blocks * piece.inner
    columns: Tensor = rows.narrow(-1, piece.start, width).unflatten(-1, (piece.blocks, piece.inner))
    return columns


def _cut_by_function(rule: BlockRule, parameter: Parameter) -> Cut:
    """Return the cut into the number of blocks that a user's function returns."""
    blocks = rule(parameter.name, parameter.tensor)
    n = parameter.tensor.numel()
    if not isinstance(blocks, int) or blocks < 1 or n % blocks:
        raise InputError(f"{blocks!r} blocks for {parameter.name!r}: give a divisor of its {n:,} numbers")
    return row(blocks, n // blocks)
