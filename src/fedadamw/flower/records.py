"""For your own Flower app: the messages between `fedadamw.Server` and `fedadamw.FedAdamW` as records.

server:  record = pack(server.broadcast())          client:  opt.start_round(unpack_broadcast(record, server's blocks))
         server.update([unpack_upload(r, ...)])                    record = pack(opt.finish_round())
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedadamw.algorithms import fedadamw as algorithm
from fedadamw.blocks.blocks import Blocks
from fedadamw.flower.wire import ArraySpec, RefusedError, read_arrays, to_array
from fedadamw.optim.messages import Broadcast, Message, Upload, check_message
from fedadamw.validation import InputError, check_one_of

Sent = TypeVar("Sent", Broadcast, Upload)
ABOUT = "about"  # the array that names the model, cut and share of a message, as text


def pack(message: Broadcast | Upload) -> ArrayRecord:
    """Pack a broadcast or an upload into a record, one array per field; half precision is sent as float32."""
    tensors: dict[str, Tensor] = dict(message.state._asdict())
    if isinstance(message, Upload):
        tensors["lr"] = message.lr
    tensors = {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}
    about = np.frombuffer(_about(message).encode(), np.uint8)
    return ArrayRecord({ABOUT: Array(about), **{name: to_array(t) for name, t in tensors.items()}})


def unpack_broadcast(record: Mapping[str, Array], blocks: Blocks, share: str = "mean-v") -> Broadcast:
    """Unpack a broadcast; raises InputError if it is for another model, RefusedError if it is not a broadcast."""
    counts = 2 if share == "vm" and "t" in record and tuple(record["t"].shape) == (2,) else 1
    state = algorithm.Server(**_tensors(record, blocks, share, {"x": blocks.d, "delta": blocks.d, "t": counts}))
    message = Broadcast(blocks.layout, blocks.fingerprint, share, state)
    return _check_about(message, record, blocks, share, "the broadcast")


def unpack_upload(
    record: Mapping[str, Array],
    blocks: Blocks,
    share: str = "mean-v",
    *,
    steps: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Upload:
    """Unpack an upload; raises InputError if it is for another model, RefusedError if it is not an upload.

    It makes the same checks as `Server.update`, so a bad upload can be left out before. steps: the most steps that a
    client may report, if known. dtype: the server's; numbers must be finite in it.
    """
    tensors = _tensors(record, blocks, share, {"delta": blocks.d, "k": 1, "lr": len(blocks.layout.names)})
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    lr = tensors.pop("lr")
    message = Upload(blocks.layout, blocks.fingerprint, share, algorithm.Up(**tensors), lr)
    if steps is not None and not float(message.state.k) <= steps:
        raise RefusedError("steps", f"{float(message.state.k):g} steps are reported, {steps} were asked for")
    return _check_about(message, record, blocks, share, "the upload")


def _tensors(record: Mapping[str, Array], blocks: Blocks, share: str, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Read the record's arrays, apart from ABOUT; `sizes` and the share say how long each must be."""
    check_one_of("share", share, algorithm.SHARES)
    counts = {"restart": 0, "whole": blocks.d, "mean": blocks.B}
    how_m, how_v = algorithm.SHARES[share]
    sizes = {**sizes, "m": counts[how_m], "v": counts[how_v]}
    numbers = {name: array for name, array in record.items() if name != ABOUT}
    kinds = {name: array.dtype for name, array in numbers.items()}
    floats = {name: kind for name, kind in kinds.items() if kind in ("float32", "float64")}
    expected = {name: ArraySpec((size,), floats.get(name, "float32")) for name, size in sizes.items()}
    return read_arrays(numbers, expected)


def _check_about(message: Sent, record: Mapping[str, Array], blocks: Blocks, share: str, which: str) -> Sent:
    """Return `message` if the record's text names its model, cut and share; raises InputError otherwise."""
    expected = _about(message)
    array = record.get(ABOUT)
    fits = array is not None and array.dtype == "uint8" and len(array.shape) == 1 and len(array.data) <= 1000
    text = _read_text(array) if array is not None and fits else None
    if text != expected:
        raise InputError(f"{which} is for another model, cut or share: {text!r} instead of {expected!r}")
    check_message(message, blocks, share, which)
    return message


def _read_text(array: Array) -> str | None:
    try:
        (codes,) = read_arrays({ABOUT: array}, {ABOUT: ArraySpec(tuple(array.shape), "uint8")}).values()
    except RefusedError:
        return None
    return bytes(codes.to(torch.uint8).tolist()).decode(errors="replace")


def _about(message: Message) -> str:
    return f"layout {message.layout.fingerprint}, cut {message.cut}, share {message.share}"
