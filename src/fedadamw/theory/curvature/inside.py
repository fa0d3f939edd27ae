"""Is curvature where the blocks are? Shares of the Gauss-Newton matrix inside the heads and rows of each parameter.

The paper shares one number of v in each block because the Hessian is near block-diagonal. Here that is measured: the
share of the squared entries of a matrix's own part of the Gauss-Newton matrix that lies inside its blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedadamw.blocks.blocks import Blocks
from fedadamw.blocks.cuts import Cut, parameters_of
from fedadamw.theory.curvature.jacobian import LIMIT_BYTES, count_outputs, iter_groups, jacobian
from fedadamw.theory.curvature.shares import Share, row_map, share_inside
from fedadamw.theory.curvature.subject import Report, Subject
from fedadamw.validation import check
from fedadamw.vector import trainable

AT_ONCE = 64  # samples in a batch
MAPS, MAP_ROWS, MAP_NUMBERS = 4, 64, 2**15  # pictures, rows in each, weights in a matrix that gets one
SHOWN_FIRST = ("query", "key", "mlp", "qkv", "value", "projection", "head")


class Inside(NamedTuple):
    """The share of one parameter's curvature inside its blocks."""

    parameter: str
    kind: str  # as of Blocks.kinds
    shape: tuple[int, ...]
    cut: Literal["heads", "rows"]
    blocks: int
    share: Share

    @property
    def label(self) -> str:
        """What parameters that play the same role have in common."""
        return f"{self.kind} {' x '.join(map(str, self.shape))}, {self.cut}"


class Map(NamedTuple):
    """The curvature between each two of a matrix's first rows, (rows, rows), the largest 1."""

    parameter: str
    kind: str
    values: Tensor


class Curvature(NamedTuple):
    """What was measured of all matrices of weights."""

    samples: int
    outputs: int
    inside: list[Inside]
    maps: list[Map]
    left_out: list[str]  # parameters whose rows of J do not fit in memory

    def facts(self) -> dict[str, Any]:
        """Return the shares and maps for a JSON file."""
        rows = [{**row._asdict(), "share": row.share._asdict()} for row in self.inside]
        maps = [{**each._asdict(), "values": each.values.tolist()} for each in self.maps]
        sizes = {"samples": self.samples, "outputs": self.outputs, "left_out": self.left_out}
        return {**sizes, "parameters": rows, "maps": maps}


def measure_curvature(subject: Subject, count: int, report: Report = lambda *_: None) -> Curvature:
    """Measure the shares on `count` training samples, the whole matrix of each parameter exactly.

    Raises InputError if no trainable parameter has more than one block, or none fits in memory.
    """
    samples = subject.draw(count)
    batches = list(subject.batches(samples, AT_ONCE))
    outputs = count_outputs(subject, batches[0])
    cuts = find_cuts(subject.model)
    check(bool(cuts), "no trainable parameter is cut into blocks")
    parameters = trainable(subject.model)
    rows, width = len(samples) * outputs, next(iter(parameters.values())).element_size()
    fitting = [name for name in cuts if rows * width * parameters[name].numel() <= LIMIT_BYTES]
    check(
        bool(fitting), f"{rows:,} rows of every parameter take more than {LIMIT_BYTES / 1e9:g} GB: take fewer samples"
    )
    drawn, inside, maps = _choose_maps(fitting, cuts, parameters), list[Inside](), list[Map]()
    groups = list(iter_groups(parameters, fitting, rows, width))
    for number, group in enumerate(groups):
        ahead = number * len(samples)
        j = jacobian(
            subject,
            batches,
            group,
            lambda done: report("Jacobian", ahead + done, len(groups) * len(samples)),  # noqa: B023
        )
        for name, part in zip(group, j.split([parameters[n].numel() for n in group], 1), strict=True):
            shape = tuple(parameters[name].shape)
            for cut in cuts[name]:
                labels = cut.labels.to(j.device)
                share = share_inside(part, labels)
                inside.append(Inside(name, cut.kind, shape, cut.name, int(labels.max()) + 1, share))
            if name in drawn:
                maps.append(Map(name, cuts[name][0].kind, _draw_map(part, cuts[name][-1].labels.to(j.device))))
    return Curvature(len(samples), outputs, inside, maps, [name for name in cuts if name not in fitting])


class NamedCut(NamedTuple):
    """One way to cut a parameter: each of its coordinates' block."""

    name: Literal["heads", "rows"]
    kind: str
    labels: Tensor


def find_cuts(model: nn.Module) -> dict[str, list[NamedCut]]:
    """Return the cuts of each parameter with more than one block: the paper's, where it is not by rows, and rows."""
    paper, rows = Blocks.of(model), cut_rows(model)
    cuts: dict[str, list[NamedCut]] = {}
    for name, kind, *labels in zip(paper.layout.names, paper.kinds, label(paper), label(rows), strict=True):
        if not len(labels[0]) or int(labels[1].max()) == 0:
            continue
        by_heads = not torch.equal(*labels) and int(labels[0].max()) > 0
        cuts[name] = [NamedCut("heads", kind, labels[0])] if by_heads else []
        cuts[name].append(NamedCut("rows", kind, labels[1]))
    return cuts


def cut_rows(model: nn.Module) -> Blocks:
    """Return the blocks of one output unit each: neuron, channel, token; one for a vector."""
    paper = Blocks.of(model, "tensor")
    cuts = tuple(
        (Cut(p.outer, 0, sum(part.rows for part in p.parts), p.unit, p.groups),) if p.tensor.numel() else ()
        for p in parameters_of(model)
    )
    return Blocks(paper.layout, paper.kinds, cuts)


def label(blocks: Blocks) -> Iterator[Tensor]:
    """Yield for each parameter the number of each coordinate's block, from 0."""
    numbers = blocks.expand(torch.arange(blocks.B, dtype=torch.float64)).long()
    for part in numbers.split(blocks.layout.sizes):
        yield part - part.min() if len(part) else part


def _choose_maps(
    names: Sequence[str], cuts: dict[str, list[NamedCut]], parameters: dict[str, nn.Parameter]
) -> list[str]:
    """Return the first parameter of each kind and shape that is small enough for a picture, few of them."""
    first: dict[tuple[str, tuple[int, ...]], str] = {}
    for name in names:
        labels = cuts[name][-1].labels
        equal = int(labels.bincount().min()) * (int(labels.max()) + 1) == len(labels)
        if parameters[name].numel() <= MAP_NUMBERS and equal:
            first.setdefault((cuts[name][0].kind, tuple(parameters[name].shape)), name)
    order = {kind: place for place, kind in enumerate(SHOWN_FIRST)}
    return sorted(first.values(), key=lambda name: order.get(cuts[name][0].kind, len(order)))[:MAPS]


def _draw_map(j: Tensor, rows: Tensor) -> Tensor:
    """Return the curvature between the first rows of a matrix, the largest 1."""
    shown = rows < MAP_ROWS
    found = row_map(j[:, shown], rows[shown])
    return (found / found.max().clamp(min=torch.finfo(found.dtype).tiny)).cpu().float()
