"""Uploads: an algorithm's Up through a codec, with error feedback.

    target   = change + residual             the change, and what was lost of earlier ones
    payload  = encode(target)                what travels
    up       = decode(payload)               what the server averages; client and server compute the same
    residual = target - up                   what the client keeps, beside the algorithm's own memory

This holds for the fields that the algorithm calls changes. States (whole moments) have no residual, and fields that are
short beside the model (counters, block means) travel as they are, as q does in any case.
"""

from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.algorithms.counter import Q
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.codecs import Codec, Plain
from fedadamw.randomness import Purpose, torch_generator
from fedadamw.validation import InputError, check
from fedadamw.vector import Vector, all_finite, nbytes

Payload = dict[str, Tensor]  # what travels, by name: fields of Up such as `delta`, and parts such as `delta.scales`
Residual = tuple[Vector, ...]  # (d,) for each change that the codec loses something of
RESIDUAL = "residual_"  # prefix of residuals' names in a client's memory


class Engine(Protocol):
    """Trains sampled clients: one after the other (loop.py), or stacked on one axis (stacked.py)."""

    def train(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Yield the answer of each client of `shards`; it is valid until the next one is asked for."""


class EncodedUpload(NamedTuple):
    """An upload that is ready to be sent."""

    payload: Payload
    up: AnyState  # the algorithm's Up as the server will have it
    residual: Residual


@dataclass(frozen=True)
class Uploads:
    """The uploads of an algorithm through a codec: encoded by clients, decoded by the server."""

    algorithm: AnyAlgorithm
    codec: Codec

    @property
    def changes(self) -> tuple[str, ...]:
        """The fields of Up that have a residual."""
        return self.algorithm.changes if self.codec.feedback else ()

    def initial_memory(self, down: AnyState) -> AnyState:
        """A client's memory before its first round: the algorithm's, then residuals of zero."""
        return self.join_memory(self.algorithm.client_init(down), self.zero_residual(down.x))

    def zero_residual(self, x: Vector) -> Residual:
        """The residual before the first round."""
        return tuple(torch.zeros_like(x) for _ in self.changes)

    def join_memory(self, memory: AnyState, residual: Residual) -> AnyState:
        """One NamedTuple of the algorithm's memory and the residuals."""
        if not self.changes:
            return memory
        names = (*getattr(memory, "_fields", ()), *(RESIDUAL + name for name in self.changes))
        return _memory_type(names)(*memory, *residual)

    def split_memory(self, memory: AnyState, down: AnyState) -> tuple[AnyState, Residual]:
        """The algorithm's memory and the residuals that `join_memory` joined; None and zeros for None."""
        if memory is None or not self.changes:
            return memory, self.zero_residual(down.x)
        count = len(memory) - len(self.changes)
        template = self.algorithm.client_init(down)
        return (type(template)(*memory[:count]) if template != () else ()), tuple(memory[count:])

    def template(self, down: AnyState) -> AnyState:
        """An Up of the shapes and types that clients send in answer to `down`; its numbers mean nothing."""
        local = self.algorithm.client_start(down, self.algorithm.client_init(down))
        return self.algorithm.client_finish(local, down, down.x.new_ones(()))[0]

    def nbytes(self, down: AnyState, places: Tensor | None = None) -> int:
        """How many bytes of tensors travel of any Up in answer to `down`; places: as of `encode`."""
        generator = torch.Generator()
        return nbytes(self.encode(self.template(down), self.zero_residual(down.x), generator, places).payload.values())

    def encode(
        self, up: AnyState, residual: Residual, generator: torch.Generator, places: Tensor | None = None
    ) -> EncodedUpload:
        """What travels of `up`, what arrives, and the new residual.

        places: of the model's numbers, those (p,) that the client has; the others arrive as 0.
        """
        payload: Payload = {}
        arrived, lost = [], []
        residuals = dict(zip(self.changes, residual, strict=True))
        for name, t in up._asdict().items():
            codec = self._codec(up, name)
            target = t + residuals[name] if name in residuals else t
            if places is None or t.shape != up.delta.shape:
                sent = codec.encode(target, generator)
                arrived.append(codec.decode(sent, t))
            else:
                sent = codec.encode(target[places], generator)
                arrived.append(torch.zeros_like(t).index_copy(0, places, codec.decode(sent, t[places])))
            payload |= zip(_part_names(name, codec), sent, strict=True)
            if name in residuals:
                missed = target - arrived[-1]
                lost.append(missed if places is None else torch.zeros_like(t).index_copy(0, places, missed[places]))
        return EncodedUpload(payload, type(up)(*arrived), tuple(lost))

    def decode(self, payload: Mapping[str, Tensor], template: AnyState) -> AnyState:
        """The Up in a payload, of the shapes of `template`; InputError if `encode` cannot have made it."""
        fields = {name: _part_names(name, self._codec(template, name)) for name in template._fields}
        known = [part for parts in fields.values() for part in parts]
        missing = next((name for name in known if name not in payload), None)
        check(missing is None, f"the upload has no {missing}")
        extra = next((name for name in payload if name not in known), None)
        check(extra is None, f"the upload has {extra!r}, which is none of {', '.join(known)}")
        parts = {name: tuple(payload[part] for part in fields[name]) for name in fields}
        return type(template)(*(self._decode_field(template, name, sent) for name, sent in parts.items()))

    def _decode_field(self, template: AnyState, name: str, sent: tuple[Tensor, ...]) -> Tensor:
        """One field, checked."""
        codec, like = self._codec(template, name), getattr(template, name)
        try:
            codec.check(sent, like)
            t = codec.decode(sent, like)
            check(all_finite([t]), "has a number that is not finite")
        except InputError as error:
            raise InputError(f"the upload's {name}: {error}") from None
        return t

    def _codec(self, up: AnyState, name: str) -> Codec:
        """The codec of field `name`: `codec` for a change, its codec for states for a state at least half as long."""
        changes = self.algorithm.changes
        if name in changes:
            return self.codec
        if name == Q and self.algorithm.carried:
            return Plain()
        long = 2 * getattr(up, name).shape[-1] >= getattr(up, changes[0]).shape[-1]
        return self.codec.for_states if long else Plain()


@dataclass(frozen=True)
class CodedEngine(Engine):
    """An engine whose answers are encoded: `up` as it arrives, `payload`, and residuals in `memory`.

    places: of the model's numbers, those that the clients have; None: all.
    """

    engine: Engine
    uploads: Uploads
    seed: int
    places: Tensor | None = None

    def train(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """As the engine's `train`; clients' memories include the residuals."""
        uploads, residuals = self.uploads, dict[tuple[int, int], Residual]()
        unchanged = isinstance(uploads.codec, Plain)

        def split_memory(shard: Shard) -> Shard:
            memory, residuals[shard.client, shard.repeat] = uploads.split_memory(shard.memory, broadcast.down)
            return shard._replace(memory=memory)

        def encode(pair: tuple[Shard, Answer]) -> tuple[Shard, Answer]:
            shard, answer = pair
            residual = residuals.pop((shard.client, shard.repeat))
            if not (unchanged or answer.finite):
                return pair  # it will be rejected; one that is sent as it is is looked at then
            cpu = torch.device("cpu")
            keys = (broadcast.round, shard.client, shard.repeat)
            generator = torch_generator(self.seed, Purpose.CODEC, *keys, device=cpu)
            payload, up, lost = uploads.encode(answer.up, residual, generator, self.places)
            return shard, answer._replace(up=up, memory=uploads.join_memory(answer.memory, lost), payload=payload)

        # `map` keeps no answer while the next client trains
        return map(encode, self.engine.train(map(split_memory, shards), broadcast))


@cache
def _memory_type(names: tuple[str, ...]) -> type[Any]:
    """The type of a memory with these fields: the algorithm's and the residuals."""
    return namedtuple("Memory", names)


def _part_names(field: str, codec: Codec) -> list[str]:
    """The names of a field's parts in the payload."""
    return [f"{field}.{part}" if part else field for part in codec.parts]
