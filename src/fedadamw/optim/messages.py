"""Messages between a server and its clients in other loops: check, save and load them."""

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
    """Fields that identify the model in both kinds of messages, so that messages for another model are refused."""

    layout: Layout
    cut: str  # Blocks.fingerprint
    share: str  # none, m, v, vm, mean-v


@dataclass(frozen=True, eq=False)
class Broadcast(Message):
    """Message of the server to its clients, made by `Server.broadcast`.

    state: x (d,), Delta_G (d,), the shared moments (v: (B,) block means by default) and the steps so far t (1,); with
    share vm and unequal numbers of steps t (2,), of m and v.
    momentum: (d,) of the outer step, only in what `Server.snapshot` returns.
    """

    state: algorithm.Server
    momentum: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Upload(Message):
    """Message of a client to the server, made by `FedAdamW.finish_round`.

    state: delta = y - x (d,), the shared moments (v: (B,) block means by default) and the number of steps k (1,).
    """

    state: algorithm.Up
    lr: Tensor  # (parameters,) mean learning rate over the round's steps


def check_message(message: Message, blocks: Blocks, share: str, which: str, dtype: torch.dtype | None = None) -> None:
    """Raise InputError if `message` is for another model, of another shape, or has invalid numbers.

    dtype: the type that its numbers will be converted to, in which they must be finite.
    """
    check(
        isinstance(message, Broadcast | Upload), f"{which} is a {type(message).__name__}, not an Upload or a Broadcast"
    )
    problem = blocks.layout.difference(message.layout)
    if problem:
        raise InputError(f"{which} is for another model: {problem}")
    check(message.cut == blocks.fingerprint, f"{which} was cut into other blocks: use one granularity on both sides")
    check(message.share == share, f"{which} shares {message.share!r} instead of {share!r}")
    how_m, how_v = algorithm.SHARES[share]
    counts = {"restart": 0, "whole": blocks.d, "mean": blocks.B}
    sizes = {"x": blocks.d, "delta": blocks.d, "m": counts[how_m], "v": counts[how_v], "t": 1, "k": 1}
    sizes |= {"momentum": blocks.d}
    state: Any = message.state  # type: ignore[attr-defined]  # both kinds have one
    if isinstance(message, Broadcast) and share == "vm" and len(state.t) == 2:
        sizes["t"] = 2
    momentum = getattr(message, "momentum", None)
    for field, t in (state._asdict() | ({} if momentum is None else {"momentum": momentum})).items():
        check(t.shape == (sizes[field],), f"{which}: {field} has {t.numel():,} numbers instead of {sizes[field]:,}")
        _check_numbers(~torch.isfinite(t.to(dtype or t.dtype)), "is not finite", field, blocks, share, which)
    _check_numbers(state.v < 0, "is negative", "v", blocks, share, which)
    if isinstance(message, Upload):
        check(float(message.state.k) >= 1, f"{which}: {float(message.state.k):g} steps; at least 1 is needed")
        valid = message.lr.shape == (len(blocks.layout.names),) and bool(
            (message.lr.to(dtype or message.lr.dtype).isfinite() & (message.lr >= 0)).all()
        )
        check(valid, f"{which}: its learning rates must be one finite number per parameter, not negative")


def _check_numbers(bad: Tensor, complaint: str, field: str, blocks: Blocks, share: str, which: str) -> None:
    """Raise InputError if any number is `bad`; it names the parameter of the first."""
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
    """Write an upload or a broadcast to a safetensors file, atomically; raises DiskFullError if it does not fit."""
    tensors = message.state._asdict()
    if isinstance(message, Upload):
        tensors["lr"] = message.lr
    elif message.momentum is not None:
        tensors["momentum"] = message.momentum
    shapes = [list(shape) for shape in message.layout.shapes]
    facts = {"names": message.layout.names, "shapes": shapes, "cut": message.cut, "share": message.share}
    checkpoint.write(Path(path), type(message).__name__.lower(), tensors, facts)


def load(path: str | Path) -> Broadcast | Upload:
    """Read an upload or a broadcast that `save` wrote.

    Raises CheckpointError (a ValueError) if the file is missing, damaged or contains something else. The tensors are
    on the CPU. The message is checked against the model when it is used.
    """
    tensors, facts = checkpoint.read(Path(path), "upload", "broadcast")
    try:
        layout = Layout(tuple(map(str, facts["names"])), tuple(torch.Size(shape) for shape in facts["shapes"]))
        about = (layout, str(facts["cut"]), str(facts["share"]))
        if "lr" in tensors:
            lr = tensors.pop("lr")
            return Upload(*about, algorithm.Up(**tensors), lr)
        momentum = tensors.pop("momentum", None)
        return Broadcast(*about, algorithm.Server(**tensors), momentum)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: contains neither an upload nor a broadcast ({error})") from None
