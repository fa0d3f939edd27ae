"""Codecs: how a vector that a client sends becomes fewer bytes, and a vector again.

    float32     as it is (float64 where the model is)                         4 bytes a number
    bfloat16    rounded to 8 significant bits                                 2
    int8        chunks of 2,048 numbers, each scaled to -127 .. 127 and
                rounded up or down at random, right in the mean               1.002
    top-k       the `keep` largest in size, with their places                 8 * keep

What `int8` and `top-k` lose of a change is kept by the client and added to what it sends next (error feedback, arXiv
1901.09847): over the rounds all of it arrives. That is no way to send a state such as a second moment, which is wanted
as of now: states go as bfloat16 there, whose rounding is relative, so that none becomes negative or, unless it was, 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812  (as everybody names it)
from torch import Tensor

from fedadamw.validation import InputError, check, check_one_of
from fedadamw.vector import Vector

CHUNK = 2048  # numbers that share a scale of int8
MOST = 127  # the largest code of int8; -128 has no counterpart


class Codec(ABC):
    """Makes named tensors of a vector (d,), and a vector of them. Pure; a frozen dataclass."""

    feedback: ClassVar[bool]
    """Whether what it loses of a change is to be kept and sent later."""

    parts: ClassVar[tuple[str, ...]]
    """The names of the tensors that it makes; the main one, which comes first, has none."""

    @property
    @abstractmethod
    def of_states(self) -> "Codec":
        """The codec of what is no change, without feedback."""

    @abstractmethod
    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The tensors, one a part; `generator`, on the CPU, has whatever is random."""

    @abstractmethod
    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        """The vector of the shape, type and device of `like`, from tensors that are as `check` wants them."""

    @abstractmethod
    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        """Raise InputError where these cannot be what `encode` makes of a vector like `like`."""


@dataclass(frozen=True)
class Plain(Codec):
    """As it is."""

    feedback: ClassVar = False
    parts: ClassVar = ("",)

    @property
    def of_states(self) -> Codec:
        return self

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (x,)

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        return sent[0].to(like.device)

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        _check(sent[0], like.shape, like.dtype)


@dataclass(frozen=True)
class BFloat16(Codec):
    """Rounded to the nearest bfloat16, whose bits travel as int16: numpy has no such type."""

    feedback: ClassVar = False
    parts: ClassVar = ("",)

    @property
    def of_states(self) -> Codec:
        return self

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (x.to(torch.bfloat16).contiguous().view(torch.int16),)

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        return sent[0].contiguous().view(torch.bfloat16).to(like)

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        _check(sent[0], like.shape, torch.int16)


@dataclass(frozen=True)
class Int8(Codec):
    """Multiples of a scale a chunk, rounded up or down at random so that the mean is right (QSGD, arXiv 1610.02132)."""

    feedback: ClassVar = True
    parts: ClassVar = ("", "scales")

    @property
    def of_states(self) -> Codec:
        return BFloat16()

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        chunks = _chunks(x)
        scales = _scales(chunks.abs().amax(-1))
        wide = scales.to(x)[:, None]
        q = torch.where(wide > 0, chunks / wide, 0.0)
        below = q.floor()
        drawn = _chunks(torch.rand(len(x), generator=generator).to(x))
        codes = (below + (drawn < q - below)).clamp(-MOST, MOST).to(torch.int8)
        return codes.flatten()[: len(x)].clone(), scales

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        codes, scales = (t.to(like) for t in sent)
        return (_chunks(codes) * scales[:, None]).flatten()[: len(like)]

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        codes, scales = sent
        _check(codes, like.shape, torch.int8)
        _check(scales, (-(-len(like) // CHUNK),), torch.float32)
        check(bool((codes >= -MOST).all()), f"has a code below {-MOST}")
        check(bool((scales >= 0).all()), "has a scale that is negative or no number")


@dataclass(frozen=True)
class TopK(Codec):
    """The largest in size and their places; the first of equals."""

    keep: float  # the share that is sent

    feedback: ClassVar = True
    parts: ClassVar = ("", "places")

    @property
    def of_states(self) -> Codec:
        return BFloat16()

    def count(self, d: int) -> int:
        """How many numbers are sent of d."""
        return min(max(round(self.keep * d), 1), d)

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        size, count = x.abs(), self.count(len(x))
        least = size.topk(count, sorted=True).values[-1:]
        larger, equal = (size > least).nonzero().flatten(), (size == least).nonzero().flatten()
        places = torch.cat([larger, equal[: count - len(larger)]]).sort().values
        return x[places], places.to(torch.int32)

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        values, places = (t.to(like.device) for t in sent)
        return torch.zeros_like(like).index_copy(0, places.long(), values)

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        values, places = sent
        shape = (self.count(len(like)),)
        _check(values, shape, like.dtype)
        _check(places, shape, torch.int32)
        inside = not len(places) or (int(places.min()) >= 0 and int(places.max()) < len(like))
        check(inside, f"has a place outside 0 .. {len(like) - 1}")
        check(bool((places[1:] > places[:-1]).all()), "has places that do not rise")


CODECS = ("float32", "bfloat16", "int8", "top-k")


def made(name: str, keep: float) -> Codec:
    """The codec of that name; keep: the share of numbers that top-k sends."""
    check_one_of("training.upload", name, CODECS)
    table: Mapping[str, Codec] = {"float32": Plain(), "bfloat16": BFloat16(), "int8": Int8(), "top-k": TopK(keep)}
    return table[name]


def _chunks(x: Vector) -> Tensor:
    """The numbers of `x` (d,) as (chunks, CHUNK), with zeros after the last."""
    return F.pad(x, (0, -len(x) % CHUNK)).view(-1, CHUNK)


def _scales(largest: Tensor) -> Tensor:
    """The least float32 that times 127 is no less than `largest`."""
    scales = (largest / MOST).float()
    short = scales.double() * MOST < largest.double()
    return torch.where(short, scales.nextafter(torch.full_like(scales, torch.inf)), scales)


def _check(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise InputError unless `t` has this shape and type."""
    if t.shape != shape or t.dtype != dtype:
        raise InputError(f"has shape {tuple(t.shape)} and type {t.dtype}, not {tuple(shape)} and {dtype}")
