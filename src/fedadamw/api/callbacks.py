"""Callbacks: a user's code that is called while a run goes on."""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import NamedTuple

from torch import Tensor, nn

from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.record import Record
from fedadamw.validation import check, shorten


class ClientUpdate(NamedTuple):
    """What a client sent in a round."""

    round: int  # from 1
    client: int
    samples: int  # that the client holds
    loss: float  # mean over its local steps
    delta: Tensor  # (d,) its model minus the global one; valid only during the call


class Callback:
    """Called while a run goes on; override what you need. A true value from a method stops the run after that round."""

    def on_start(self, records: Sequence[Record]) -> object:
        """Called once, before the first round. records: of the earlier rounds if the run is resumed."""

    def on_client(self, update: ClientUpdate) -> object:
        """Called for each client whose upload is accepted."""

    def on_evaluate(self, record: Record, model: nn.Module) -> object:
        """Called after each evaluation, before `on_round`; `model` has the global weights, in evaluation mode.

        With personal parameters, that is after each evaluation of the clients: `record.clients_mean` is the score.
        """

    def on_round(self, record: Record) -> object:
        """Called after each round, when its record is on disk."""


class EarlyStopping(Callback):
    """Stops a run when its main metric has not improved for some evaluations.

    Without metrics it watches the held-out loss; with personal parameters, the mean of the clients' scores. A resumed
    run counts from its first round, as if it had not stopped.
    """

    of_clients = False  # what is watched, set when the run starts

    def __init__(self, patience: int, *, min_delta: float = 0.0) -> None:
        """Stop after `patience` evaluations in a row, each at most `min_delta` better than the best before."""
        check(patience >= 1, f"patience={patience}: give at least 1")
        self.patience, self.min_delta = patience, min_delta
        self.best, self.since_best = -inf, 0

    def on_start(self, records: Sequence[Record]) -> bool:
        """Count the evaluations of earlier rounds."""
        self.best, self.since_best = -inf, 0
        stops = [self._count(score) for record in records if (score := self._score(record)) is not None]
        return stops[-1:] == [True]

    def on_round(self, record: Record) -> bool:
        """Count the round's evaluation, if there was one."""
        score = self._score(record)
        return score is not None and self._count(score)

    def _score(self, record: Record) -> float | None:
        return record.score(of_clients=self.of_clients)

    def _count(self, score: float) -> bool:
        """Whether the run should stop."""
        if score > self.best + self.min_delta:
            self.best, self.since_best = score, 0
        else:
            self.since_best += 1
        return self.since_best >= self.patience


class Callbacks:
    """Several callbacks as one; a plain function is an `on_round`. of_clients: what the score is, see Record.score."""

    def __init__(
        self, callbacks: Iterable["Callback | Callable[[Record], object]"], *, of_clients: bool = False
    ) -> None:
        check(isinstance(callbacks, Iterable), f"callbacks: give a list of them, not {shorten(callbacks)}")
        self._all = [_as_callback(callback) for callback in callbacks]
        self._of_clients = of_clients
        self._round = 1
        self._stop = False

    @property
    def see_clients(self) -> bool:
        """Whether any overrides `on_client`."""
        return any(type(callback).on_client is not Callback.on_client for callback in self._all)

    def start(self, records: Sequence[Record]) -> bool:
        """Tell all that the run begins after these records; returns whether it should stop at once."""
        self._round = len(records) + 1
        for callback in self._all:
            if isinstance(callback, EarlyStopping):
                callback.of_clients = self._of_clients
        self._stop = self._ask(lambda callback: callback.on_start(records))
        return self._stop

    def listen(self, shard: Shard, answer: Answer) -> None:
        """Tell all of a client's accepted answer."""
        loss, delta = float(answer.loss), answer.up.delta
        update = ClientUpdate(self._round, shard.client, answer.samples, loss, delta)
        self._stop |= self._ask(lambda callback: callback.on_client(update))

    def end_round(self, record: Record, model: nn.Module) -> bool:
        """Tell all of a finished round; returns whether the run should stop."""
        self._round = record.round + 1
        if record.score(of_clients=self._of_clients) is not None:
            self._stop |= self._ask(lambda callback: callback.on_evaluate(record, model))
        self._stop |= self._ask(lambda callback: callback.on_round(record))
        return self._stop

    def _ask(self, ask: Callable[[Callback], object]) -> bool:
        """Whether any callback wants to stop; all are asked."""
        return True in [bool(ask(callback)) for callback in self._all]


class _OnRound(Callback):
    """A function as a callback."""

    def __init__(self, function: Callable[[Record], object]) -> None:
        self._function = function

    def on_round(self, record: Record) -> object:
        return self._function(record)


def _as_callback(given: "Callback | Callable[[Record], object]") -> Callback:
    """Return `given` as a callback; raises InputError if it is neither a Callback nor a function."""
    if isinstance(given, Callback):
        return given
    check(not isinstance(given, type) and callable(given), f"callbacks: {shorten(given)} is no Callback or function")
    return _OnRound(given)
