"""Tensors <-> Flower's records, one array a field: numpy's own format, and nothing that runs."""

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor

HEADER = 256  # bytes that numpy's format may need beside the numbers
LONGEST = 300  # letters of what is told of a refused answer: some of it is the node's own
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class RefusedError(Exception):
    """What came over the wire is not what it must be; reason: one word to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail if len(detail) <= LONGEST else detail[:LONGEST] + "..."
        super().__init__(f"{reason}: {self.detail}")


class ArraySpec(NamedTuple):
    """The shape and type that an array must have."""

    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def nbytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @staticmethod
    def of(t: Tensor) -> "ArraySpec":
        """What a tensor looks like on the wire."""
        return ArraySpec(tuple(t.shape), str(t.dtype).removeprefix("torch."))


def name_fields(prefix: str, state: Any) -> dict[str, Tensor]:
    """The fields of a state (a NamedTuple of tensors) as `prefix.field`."""
    return {f"{prefix}.{field}": t for field, t in state._asdict().items()}


def digest(state: Any) -> str:
    """A digest of every number of a state."""
    found = hashlib.sha256()
    for t in state:
        found.update(t.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def to_array(t: Tensor) -> Array:
    """A tensor as Flower sends it."""
    return Array(t.detach().cpu().contiguous().numpy())


def read_arrays(arrays: Mapping[str, Array], expected: Mapping[str, ArraySpec]) -> dict[str, Tensor]:
    """The tensors of `arrays`, which must be those `expected` and no other; RefusedError says what is wrong."""
    missing, extra = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    if missing:
        raise RefusedError("missing-array", f"{missing[0]!r} is missing")
    if extra:
        raise RefusedError("extra-array", f"{extra[0]!r} is not asked for")
    return {name: _tensor(name, arrays[name], wanted) for name, wanted in expected.items()}


def _tensor(name: str, array: Array, wanted: ArraySpec) -> Tensor:
    """One array: what it says of itself is compared before anything is unpacked, and nothing but numbers is read."""
    if tuple(array.shape) != wanted.shape:
        raise RefusedError("wrong-shape", f"{name!r} has shape {tuple(array.shape)} instead of {wanted.shape}")
    if array.dtype != wanted.dtype:
        raise RefusedError("wrong-dtype", f"{name!r} has type {array.dtype!r} instead of {wanted.dtype!r}")
    dtype, count = np.dtype(wanted.dtype), math.prod(wanted.shape)
    if array.stype != "numpy.ndarray" or not len(array.data) <= count * dtype.itemsize + HEADER:
        raise RefusedError("garbage", f"{name!r} is {len(array.data):,} bytes of {array.stype!r}")
    file = io.BytesIO(array.data)
    try:
        read_header = READERS[np.lib.format.read_magic(file)]
        shape, _, found = read_header(file)
    except Exception as error:  # numpy's reader of a header has many ways to fail
        raise RefusedError("garbage", f"{name!r} cannot be read ({error})") from None
    if shape != wanted.shape or found != dtype or len(array.data) != file.tell() + count * dtype.itemsize:
        raise RefusedError("garbage", f"{name!r} is not what it says it is")
    numbers = np.frombuffer(array.data, dtype, count, file.tell()).copy()
    return torch.from_numpy(numbers).reshape(wanted.shape)
