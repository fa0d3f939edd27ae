"""What travels between a server and its clients in a loop of one's own, and how it is checked and kept in a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedadamw import checkpoint
from fedadamw.algorithms import fedadamw as algorithm
from fedadamw.blocks.blocks import Blocks
from fedadamw.checkpoint import CheckpointError
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout


@dataclass(frozen=True, eq=False)
class Message:
    """What both directions say of the model they belong to, so that a foreign one is refused."""

    layout: Layout
    cut: str  # Blocks.fingerprint
    share: str  # none, m, v, vm, mean-v


@dataclass(frozen=True, eq=False)
class Broadcast(Message):
    """What the server sends: x, Delta_G (d,), the shared moments and t."""

    state: algorithm.Server


@dataclass(frozen=True, eq=False)
class Upload(Message):
    """What a client sends: delta (d,), the shared moments, and its number of steps k."""

    state: algorithm.Up
    lr: Tensor  # (parameters,) mean learning rate over the round's steps


def check_message(message: Message, blocks: Blocks, share: str, which: str, dtype: torch.dtype | None = None) -> None:
    """Raise InputError where `message` is for another model, of another shape, or holds impossible numbers.

    dtype: what its numbers will be kept in, and must be finite in.
    """
    check(isinstance(message, Broadcast | Upload), f"{which} is a {type(message).__name__}, not what rounds exchange")
    problem = blocks.layout.difference(message.layout)
    if problem:
        raise InputError(f"{which} is for another model: {problem}")
    check(message.cut == blocks.fingerprint, f"{which} was cut into other blocks: use one granularity on both sides")
    check(message.share == share, f"{which} shares {message.share!r} instead of {share!r}")
    how_m, how_v = algorithm.SHARES[share]
    counts = {"restart": 0, "whole": blocks.d, "mean": blocks.B}
    sizes = {"x": blocks.d, "delta": blocks.d, "m": counts[how_m], "v": counts[how_v], "t": 1, "k": 1}
    state: Any = message.state  # type: ignore[attr-defined]  # either of the two has one
    for field, t in state._asdict().items():
        check(t.shape == (sizes[field],), f"{which}: {field} has {t.numel():,} numbers instead of {sizes[field]:,}")
        _refuse(~torch.isfinite(t.to(dtype or t.dtype)), "is not finite", field, blocks, share, which)
    _refuse(state.v < 0, "is negative", "v", blocks, share, which)
    if isinstance(message, Upload):
        check(float(message.state.k) >= 1, f"{which}: {float(message.state.k):g} steps; at least 1 is needed")
        sane = message.lr.shape == (len(blocks.layout.names),) and bool(
            (message.lr.to(dtype or message.lr.dtype).isfinite() & (message.lr >= 0)).all()
        )
        check(sane, f"{which}: its learning rates are not one number a parameter, finite and not negative")


def _refuse(bad: Tensor, complaint: str, field: str, blocks: Blocks, share: str, which: str) -> None:
    """Raise InputError that names the parameter of the first number that is `bad`."""
    positions = bad.nonzero()
    if not len(positions):
        return
    position = int(positions[0])
    if field in ("t", "k"):
        where = "its count of steps"
    elif field == "v" and algorithm.SHARES[share][1] == "mean":
        where = next(repr(name) for name, span in blocks.spans().items() if position < span.stop)
    else:
        where = repr(blocks.layout.name_at(position))
    raise InputError(f"{which}: {field} {complaint} at {where}")


def save(message: Broadcast | Upload, path: str | Path) -> None:
    """Write what travels to a safetensors file, atomically."""
    tensors = message.state._asdict()
    if isinstance(message, Upload):
        tensors["lr"] = message.lr
    shapes = [list(shape) for shape in message.layout.shapes]
    facts = {"names": message.layout.names, "shapes": shapes, "cut": message.cut, "share": message.share}
    checkpoint.write(Path(path), type(message).__name__.lower(), tensors, facts)


def load(path: str | Path) -> Broadcast | Upload:
    """Read what `save` wrote; CheckpointError where the file is damaged or something else."""
    tensors, facts = checkpoint.read(Path(path), "upload", "broadcast")
    try:
        layout = Layout(tuple(map(str, facts["names"])), tuple(torch.Size(shape) for shape in facts["shapes"]))
        about = (layout, str(facts["cut"]), str(facts["share"]))
        if "lr" in tensors:
            lr = tensors.pop("lr")
            return Upload(*about, algorithm.Up(**tensors), lr)
        return Broadcast(*about, algorithm.Server(**tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: holds neither an upload nor a broadcast ({error})") from None
