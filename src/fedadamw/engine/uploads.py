"""What travels up: an algorithm's Up through a codec, and what a client keeps of it for its next round.

    target  = change + residual              what the client has to say, with what it could not say before
    payload = encode(target)                 what travels
    up      = decode(payload)                what the server averages, the same on both sides
    residual = target - up                   what the client keeps, beside the algorithm's own memory

So it is for the fields that the algorithm calls changes. Its states (whole moments) go without residual, and what is
short beside the model (counters, block means) goes as it is.
"""

from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.codecs import Codec, Plain
from fedadamw.engine.round import Engine
from fedadamw.randomness import Purpose, torch_generator
from fedadamw.validation import InputError, check
from fedadamw.vector import Vector, all_finite

Payload = dict[str, Tensor]  # what travels, by name: the fields of Up, `delta`, and parts of them, `delta.scales`
Residual = tuple[Vector, ...]  # (d,) a change that the codec keeps a residual of
RESIDUAL = "residual_"  # begins the names of residuals in a client's memory


class Coding(NamedTuple):
    """An upload that is ready to go."""

    payload: Payload
    up: Any  # the algorithm's Up as the server will have it
    residual: Residual


@dataclass(frozen=True)
class Uploads:
    """The uploads of an algorithm through a codec: encoded by clients, decoded by the server."""

    algorithm: AnyAlgorithm
    codec: Codec

    @property
    def changes(self) -> tuple[str, ...]:
        """The fields of Up that a residual is kept of."""
        return self.algorithm.changes if self.codec.feedback else ()

    def memory(self, down: Any) -> Any:
        """What a client keeps before its first round: the algorithm's memory, and residuals of zero after it."""
        return self.joined(self.algorithm.client_init(down), self.no_residual(down.x))

    def no_residual(self, x: Vector) -> Residual:
        """The residual before the first round."""
        return tuple(torch.zeros_like(x) for _ in self.changes)

    def joined(self, own: Any, residual: Residual) -> Any:
        """One NamedTuple of the algorithm's memory `own` and the residuals."""
        if not self.changes:
            return own
        return _kept((*getattr(own, "_fields", ()), *(RESIDUAL + name for name in self.changes)))(*own, *residual)

    def split(self, memory: Any, down: Any) -> tuple[Any, Residual]:
        """The algorithm's memory and the residuals, of what `joined` gave; None, and zeros, of None."""
        if memory is None or not self.changes:
            return memory, self.no_residual(down.x)
        count = len(memory) - len(self.changes)
        template = self.algorithm.client_init(down)
        return (type(template)(*memory[:count]) if template != () else ()), tuple(memory[count:])

    def like(self, down: Any) -> Any:
        """An Up of the shapes and types that clients send in answer to `down`; its numbers mean nothing."""
        local = self.algorithm.client_start(down, self.algorithm.client_init(down))
        return self.algorithm.client_finish(local, down, down.x.new_ones(()))[0]

    def code(self, up: Any, residual: Residual, generator: torch.Generator) -> Coding:
        """What travels of `up`, what arrives, and what is left."""
        payload: Payload = {}
        arrived, left = [], []
        kept = dict(zip(self.changes, residual, strict=True))
        for name, t in up._asdict().items():
            codec = self._codec(up, name)
            target = t + kept[name] if name in kept else t
            sent = codec.encode(target, generator)
            payload |= zip(_names(name, codec), sent, strict=True)
            arrived.append(codec.decode(sent, t))
            if name in kept:
                left.append(target - arrived[-1])
        return Coding(payload, type(up)(*arrived), tuple(left))

    def decode(self, payload: Mapping[str, Tensor], like: Any) -> Any:
        """The Up that a payload holds, of the shapes of `like`; InputError where it cannot be what `code` makes."""
        fields = {name: _names(name, self._codec(like, name)) for name in like._fields}
        known = [part for parts in fields.values() for part in parts]
        missing = next((name for name in known if name not in payload), None)
        check(missing is None, f"the upload has no {missing}")
        extra = next((name for name in payload if name not in known), None)
        check(extra is None, f"the upload has {extra!r}, which is none of {', '.join(known)}")
        return type(like)(*(self._decoded(like, name, tuple(payload[p] for p in fields[name])) for name in fields))

    def _decoded(self, like: Any, name: str, sent: tuple[Tensor, ...]) -> Tensor:
        """One field, checked."""
        codec, t = self._codec(like, name), getattr(like, name)
        try:
            codec.check(sent, t)
            found = codec.decode(sent, t)
            check(all_finite([found]), "has a number that is not finite")
        except InputError as error:
            raise InputError(f"the upload's {name}: {error}") from None
        return found

    def _codec(self, up: Any, name: str) -> Codec:
        """How field `name` goes: a change by the codec, a state at least half as long by that of states."""
        changes = self.algorithm.changes
        if name in changes:
            return self.codec
        long = 2 * getattr(up, name).shape[-1] >= getattr(up, changes[0]).shape[-1]
        return self.codec.of_states if long else Plain()


@dataclass(frozen=True)
class Coded(Engine):
    """An engine whose answers have been through the codec: `up` as it arrives, `payload`, residuals in `memory`."""

    engine: Engine
    uploads: Uploads
    seed: int

    def answers(
        self, shards: Iterable[Shard], round_: int, down: Any, statistics: Vector
    ) -> Iterator[tuple[Shard, Answer]]:
        """As the engine's own; what a client remembers is here with its residuals."""
        uploads, residuals = self.uploads, dict[int, Residual]()

        def opened(shard: Shard) -> Shard:
            own, residuals[shard.client] = uploads.split(shard.memory, down)
            return shard._replace(memory=own)

        def coded(pair: tuple[Shard, Answer]) -> tuple[Shard, Answer]:
            shard, answer = pair
            residual = residuals.pop(shard.client)
            if not answer.finite:
                return pair  # its numbers go nowhere
            generator = torch_generator(self.seed, Purpose.CODEC, round_, shard.client, device=torch.device("cpu"))
            payload, up, left = uploads.code(answer.up, residual, generator)
            return shard, answer._replace(up=up, memory=uploads.joined(answer.memory, left), payload=payload)

        # by `map`, which holds no answer while the next client trains
        return map(coded, self.engine.answers(map(opened, shards), round_, down, statistics))


@cache
def _kept(names: tuple[str, ...]) -> type[Any]:
    """The type of a memory with these fields, which are the algorithm's and the residuals."""
    return namedtuple("Kept", names)


def _names(field: str, codec: Codec) -> list[str]:
    """The names under which a field's parts travel."""
    return [f"{field}.{part}" if part else field for part in codec.parts]
