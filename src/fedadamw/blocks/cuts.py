"""The rules that cut each parameter into blocks, by its role, its rows and the parts of its rows.

A role is read from the module that owns the parameter, its path and its attributes; heads from the attention
module or the configuration, never guessed. A parameter without a rule is `unknown`, and a warning names it.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from torch import Tensor, nn

from fedadamw.blocks.heads import Part, Parts, nearest, one_part, parts_of
from fedadamw.blocks.roles import find_adapted, role_of

GRANULARITIES = ("paper", "coarse", "tensor", "coordinate")
EXPERTS = ("moe_num_experts",)  # attribute of a module with all experts in one matrix


class Cut(NamedTuple):
    """Some coordinates of a tensor: in its view (groups, outer, width), blocks * inner columns from `start`.

    Each group has `blocks` separate blocks of outer * inner numbers.
    """

    outer: int
    start: int
    blocks: int
    inner: int
    groups: int = 1

    @property
    def total(self) -> int:
        """The number of blocks in all groups."""
        return self.groups * self.blocks

    def __repr__(self) -> str:  # fingerprints use it, so it must not change for cuts without groups
        shown = list(self._asdict().items())[: 4 if self.groups == 1 else 5]
        return f"Cut({', '.join(f'{name}={value}' for name, value in shown)})"


class Parameter(NamedTuple):
    """A trainable tensor, its role, and where its output units (rows) are."""

    name: str
    tensor: Tensor
    kind: str
    groups: int  # the tensor as (groups, outer, rows, unit): a row is one output unit
    outer: int
    unit: int
    parts: tuple[Part, ...]  # of the rows of each group


def row(blocks: int, inner: int) -> Cut:
    """Return the cut of a whole tensor into `blocks` blocks of `inner` consecutive numbers."""
    return Cut(1, 0, blocks, inner)


def cut(p: Parameter, granularity: str) -> tuple[Cut, ...]:
    """Return the cuts of parameter `p` at a granularity (one of GRANULARITIES); none if it is empty."""
    n = p.tensor.numel()
    if n == 0:
        return ()
    if granularity == "coordinate":
        return (row(n, 1),)
    if granularity == "tensor" or p.kind == "vector" or (granularity, p.kind) == ("coarse", "conv"):
        return (row(1, n),)
    if granularity == "coarse" and p.groups == 1 and [part.coarse for part in p.parts] == [p.parts[0].rows]:
        return (row(1, n),)
    pieces, start = [], 0
    for (paper, coarse), equal_parts in groupby(p.parts, lambda part: (part.paper, part.coarse)):
        rows_a_block = paper if granularity == "paper" else coarse
        rows = sum(part.rows for part in equal_parts)
        pieces.append(Cut(p.outer, start * p.unit, rows // rows_a_block, rows_a_block * p.unit, p.groups))
        start += rows
    return tuple(pieces)


def parameters_of(model: nn.Module) -> list[Parameter]:
    """Return the trainable parameters of `model`, in the order of its layout, each with its role."""
    modules = dict(model.named_modules())
    parameters = []
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            path = name.split(".")
            lineage = [modules[".".join(path[:i])] for i in range(len(path)) if ".".join(path[:i]) in modules]
            parameters.append(_describe(name, tensor, path, lineage))
    return parameters


def _describe(name: str, tensor: Tensor, path: Sequence[str], lineage: Sequence[nn.Module]) -> Parameter:
    if not tensor.numel():
        return Parameter(name, tensor, "vector", 1, 1, 1, ())
    layer = find_adapted(path, lineage) if tensor.dim() > 1 else None  # B may have a bias
    if layer is None:
        role, axes = role_of(path, lineage, tensor)
        groups, outer, rows, unit = _units(axes, lineage[-1], tensor)
    else:  # a row of B is an output of the layer, in whichever order the layer's weight has its axes
        role, lineage = role_of(layer.path, layer.lineage, layer.weight)[0], layer.lineage
        groups, outer, rows, unit = 1, 1, len(tensor), tensor[0].numel()
    parts = parts_of(role, lineage, rows)
    if layer is not None and layer.experts > 1:  # (out, r, experts): an expert's outputs are not adjacent in any view
        groups, outer, rows, unit = rows, unit // layer.experts, layer.experts, 1
        parts = Parts(1, (Part(role.parts[0], rows, 1, 1),))
    if parts is None or (parts.repeats > 1 and groups * outer > 1):  # no view has repeated parts of (in, out)
        parts = one_part("unknown", rows)
    kind = parts.parts[0].role if len(parts.parts) == 1 else "qkv"
    return Parameter(name, tensor, kind, groups * parts.repeats, outer, unit, parts.parts)


def _units(axes: str, owner: nn.Module, tensor: Tensor) -> tuple[int, int, int, int]:
    """Return the tensor's view (groups, outer, rows, unit); a row is one output neuron, channel, token or head."""
    shape, n = tensor.shape, tensor.numel()
    if axes == "whole":
        return 1, 1, 1, n
    if axes == "channels":  # (in, out of a group, k, k)
        groups = getattr(owner, "groups", 1)
        return groups, shape[0] // groups, shape[1], shape[2:].numel()
    if axes == "in-out":
        return 1, shape[0], shape[1:].numel(), 1
    if axes == "in-out stack":
        stacked = shape[0] if len(shape) == 3 else nearest([owner], EXPERTS)
        return stacked, n // stacked // shape[-1], shape[-1], 1
    if axes == "stack":
        return shape[0], 1, shape[1], shape[2:].numel()
    batched = axes == "tokens" and len(shape) > 2  # (1, tokens, width)
    rows = next((size for size in shape if size > 1), 1) if batched else shape[0]
    return 1, 1, rows, n // rows
