"""Builds what a round sends to nodes: the whole state, and the change since the last round's if that is less."""

from typing import NamedTuple

from torch import Tensor

from fedadamw.algorithm import ServerState
from fedadamw.engine.client import Broadcast
from fedadamw.engine.clients import Update
from fedadamw.flower.protocol import RoundFacts
from fedadamw.flower.server.messenger import Content
from fedadamw.flower.wire import digest, name_fields
from fedadamw.vector import Vector, nbytes


class Contents(NamedTuple):
    """The contents of one round."""

    round: int  # from 0
    whole: Content
    change: Content | None  # None if it is not smaller or not sufficient


def build_contents(
    broadcast: Broadcast, last: Update | None, state: type[ServerState], *, reuse: bool, sends_base: bool
) -> Contents:
    """Return what to send of `broadcast`. last: the last round's update, from which nodes can compute the state.

    state: the type of the server's state; only if a broadcast is of this type can a change replace it. reuse: whether
    to send changes at all. sends_base: whether the frozen weights must be sent.
    """
    round_, down, statistics, base = broadcast
    sent_base = {"base": base} if sends_base else {}
    facts = RoundFacts(round=round_, form="state")
    whole = Content.of(facts, {**name_fields("down", down), "statistics": statistics, **sent_base})
    if not reuse or sends_base or type(down) is not state:
        return Contents(round_, whole, None)
    if last is None or last.round != round_ - 1 or last.up is None:
        return Contents(round_, whole, None)
    if nbytes(last.up) >= nbytes(broadcast.down):
        return Contents(round_, whole, None)
    facts = RoundFacts(round=round_, form="change", lr=last.lr, participation=last.participation, digest=digest(down))
    return Contents(round_, whole, Content.of(facts, {**name_fields("up", last.up), "statistics": statistics}))


def build_model(round_: int, x: Vector, statistics: Vector, base: Vector | None) -> Content:
    """Return the model `x` (d,) alone, to be evaluated. base: the frozen weights (w,), if nodes lack them."""
    tensors: dict[str, Tensor] = {"x": x, "statistics": statistics}
    if base is not None:
        tensors["base"] = base
    return Content.of(RoundFacts(round=round_, form="model"), tensors)
