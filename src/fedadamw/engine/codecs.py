"""Codecs: encode a vector that a client sends in fewer bytes, and decode it.

    float32     unchanged (float64 if the model is)                           4 bytes a number
    bfloat16    rounded to 8 significant bits                                 2
    int8        chunks of 2,048 numbers, each scaled to -127 .. 127 and
                rounded up or down at random: unbiased                        1.002
    top-k       the `keep` largest by magnitude, with their indices           8 * keep

What `int8` and `top-k` lose of a change is kept by the client and added to its next upload (error feedback, arXiv
1901.09847): over the rounds all of it arrives. A state such as a second moment must arrive now: there these codecs send
states as bfloat16, whose rounding is relative, so that none becomes negative, nor 0 unless it was.
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
MAX_CODE = 127  # the largest code of int8; -128 has no counterpart


class Codec(ABC):
    """Encodes a vector (d,) as named tensors, and decodes them. Pure; a frozen dataclass."""

    feedback: ClassVar[bool]
    """Whether the client keeps what encoding loses of a change and sends it later (error feedback)."""

    parts: ClassVar[tuple[str, ...]]
    """Names of the tensors that it makes; the first, main one has the empty name."""

    @property
    @abstractmethod
    def for_states(self) -> "Codec":
        """The codec for states rather than changes; no error feedback."""

    @abstractmethod
    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The tensors, one for each part; `generator` is on the CPU."""

    @abstractmethod
    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        """The vector, of the shape, type and device of `like`, from tensors that passed `check`."""

    @abstractmethod
    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        """Raise InputError if `encode` cannot have made these tensors from a vector like `like`."""


@dataclass(frozen=True)
class Plain(Codec):
    """The vector unchanged."""

    feedback: ClassVar = False
    parts: ClassVar = ("",)

    @property
    def for_states(self) -> Codec:
        return self

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (x,)

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        return sent[0].to(like.device)

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        _check(sent[0], like.shape, like.dtype)


@dataclass(frozen=True)
class BFloat16(Codec):
    """Rounded to the nearest bfloat16; its bits travel as int16, since numpy has no bfloat16."""

    feedback: ClassVar = False
    parts: ClassVar = ("",)

    @property
    def for_states(self) -> Codec:
        return self

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (x.to(torch.bfloat16).contiguous().view(torch.int16),)

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        return sent[0].contiguous().view(torch.bfloat16).to(like)

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        _check(sent[0], like.shape, torch.int16)


@dataclass(frozen=True)
class Int8(Codec):
    """Multiples of one scale for each chunk, with unbiased random rounding (QSGD, arXiv 1610.02132)."""

    feedback: ClassVar = True
    parts: ClassVar = ("", "scales")

    @property
    def for_states(self) -> Codec:
        return BFloat16()

    def encode(self, x: Vector, generator: torch.Generator) -> tuple[Tensor, ...]:
        chunks = _chunks(x)
        scales = _scales(chunks.abs().amax(-1))
        wide = scales.to(x)[:, None]
        q = torch.where(wide > 0, chunks / wide, 0.0)
        below = q.floor()
        drawn = _chunks(torch.rand(len(x), generator=generator).to(x))
        codes = (below + (drawn < q - below)).clamp(-MAX_CODE, MAX_CODE).to(torch.int8)
        return codes.flatten()[: len(x)].clone(), scales

    def decode(self, sent: tuple[Tensor, ...], like: Vector) -> Vector:
        codes, scales = (t.to(like) for t in sent)
        return (_chunks(codes) * scales[:, None]).flatten()[: len(like)]

    def check(self, sent: tuple[Tensor, ...], like: Vector) -> None:
        codes, scales = sent
        _check(codes, like.shape, torch.int8)
        _check(scales, (-(-len(like) // CHUNK),), torch.float32)
        check(bool((codes >= -MAX_CODE).all()), f"has a code below {-MAX_CODE}")
        check(bool((scales >= 0).all()), "has a scale that is negative or not a number")


@dataclass(frozen=True)
class TopK(Codec):
    """The largest numbers by magnitude and their indices; of equal ones the first."""

    keep: float  # fraction of the numbers that is sent

    feedback: ClassVar = True
    parts: ClassVar = ("", "places")

    @property
    def for_states(self) -> Codec:
        return BFloat16()

    def count(self, d: int) -> int:
        """How many of d numbers are sent."""
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
        check(inside, f"has an index outside 0 .. {len(like) - 1}")
        check(bool((places[1:] > places[:-1]).all()), "has indices that are not in rising order")


CODECS = ("float32", "bfloat16", "int8", "top-k")


def make_codec(name: str, keep: float) -> Codec:
    """The codec of that name; keep: the fraction of numbers that top-k sends."""
    check_one_of("training.upload", name, CODECS)
    codecs: Mapping[str, Codec] = {"float32": Plain(), "bfloat16": BFloat16(), "int8": Int8(), "top-k": TopK(keep)}
    return codecs[name]


def _chunks(x: Vector) -> Tensor:
    """The numbers of `x` (d,) as (chunks, CHUNK), padded with zeros."""
    return F.pad(x, (0, -len(x) % CHUNK)).view(-1, CHUNK)


def _scales(largest: Tensor) -> Tensor:
    """The smallest float32 scales for which 127 * scale >= `largest`."""
    scales = (largest / torch.full_like(largest, MAX_CODE)).float()  # by a number, a GPU multiplies by its reciprocal
    short = scales.double() * MAX_CODE < largest.double()
    return torch.where(short, scales.nextafter(torch.full_like(scales, torch.inf)), scales)


def _check(t: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise InputError unless `t` has this shape and type."""
    if t.shape != shape or t.dtype != dtype:
        raise InputError(f"has shape {tuple(t.shape)} and type {t.dtype}, not {tuple(shape)} and {dtype}")
