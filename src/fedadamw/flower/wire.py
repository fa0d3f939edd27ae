"""Converts tensors to and from Flower's arrays (numpy's format). Received bytes are only parsed as plain numbers."""

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

MAX_HEADER_BYTES = 256  # of numpy's format, before the numbers
MAX_DETAIL_CHARACTERS = 300  # of a refusal's detail, parts of which come from the node
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class RefusedError(Exception):
    """A message failed a check; reason: one word, by which refusals are counted."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail if len(detail) <= MAX_DETAIL_CHARACTERS else detail[:MAX_DETAIL_CHARACTERS] + "..."
        super().__init__(f"{reason}: {self.detail}")


class ArraySpec(NamedTuple):
    """The shape and type that an array must have."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @staticmethod
    def of(t: Tensor) -> "ArraySpec":
        """Return the spec of a tensor."""
        return ArraySpec(tuple(t.shape), str(t.dtype).removeprefix("torch."))


def name_fields(prefix: str, state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state (a NamedTuple) under the names `prefix.field`."""
    return {f"{prefix}.{field}": t for field, t in state._asdict().items()}


def digest(state: Any) -> str:
    """Return a digest of all numbers of a state."""
    sha = hashlib.sha256()
    for t in state:
        sha.update(t.detach().cpu().numpy().tobytes())
    return sha.hexdigest()


def to_array(t: Tensor) -> Array:
    """Convert a tensor to Flower's array."""
    return Array(t.detach().cpu().contiguous().numpy())


def read_arrays(arrays: Mapping[str, Array], specs: Mapping[str, ArraySpec]) -> dict[str, Tensor]:
    """Read exactly the arrays of `specs`; raises RefusedError if one is missing, extra or does not match its spec."""
    missing, extra = sorted(specs.keys() - arrays.keys()), sorted(arrays.keys() - specs.keys())
    if missing:
        raise RefusedError("missing-array", f"{missing[0]!r} is missing")
    if extra:
        raise RefusedError("extra-array", f"{extra[0]!r} is not expected")
    return {name: _read_array(name, arrays[name], spec) for name, spec in specs.items()}


def _read_array(name: str, array: Array, spec: ArraySpec) -> Tensor:
    """Read one array; check its metadata before parsing its bytes."""
    _check_metadata(name, array, spec)
    dtype, count = np.dtype(spec.dtype), math.prod(spec.shape)
    file = io.BytesIO(array.data)
    try:
        read_header = READERS[np.lib.format.read_magic(file)]
        shape, _, header_dtype = read_header(file)
    except Exception as error:  # numpy's header parser raises many kinds
        raise RefusedError("garbage", f"{name!r} cannot be read ({error})") from None
    if shape != spec.shape or header_dtype != dtype or len(array.data) != file.tell() + count * dtype.itemsize:
        raise RefusedError("garbage", f"{name!r}: its bytes contradict its metadata")
    numbers = np.frombuffer(array.data, dtype, count, file.tell()).copy()
    return torch.from_numpy(numbers).reshape(spec.shape)


def _check_metadata(name: str, array: Array, spec: ArraySpec) -> None:
    """Raise RefusedError if the array's declared shape, type or size does not match `spec`."""
    if tuple(array.shape) != spec.shape:
        raise RefusedError("wrong-shape", f"{name!r} has shape {tuple(array.shape)} instead of {spec.shape}")
    if array.dtype != spec.dtype:
        raise RefusedError("wrong-dtype", f"{name!r} has type {array.dtype!r} instead of {spec.dtype!r}")
    if array.stype != "numpy.ndarray" or not len(array.data) <= spec.nbytes + MAX_HEADER_BYTES:
        raise RefusedError("garbage", f"{name!r} is {len(array.data):,} bytes of {array.stype!r}")
