"""The record of a round, one line of metrics.jsonl."""

from dataclasses import dataclass
from typing import Any

from fedadamw.engine.diagnostics import Numbers
from fedadamw.settings.training import TrainingSettings


class DivergedError(RuntimeError):
    """No client of a round sent finite numbers, or their mean is not finite."""


@dataclass(frozen=True)
class Record:
    """One round, as it is logged; bytes are of all clients of the round, counted from the tensors."""

    round: int  # from 1
    lr: float
    train_loss: float | None  # None with differential privacy, which no training loss has
    test_loss: float | None  # None in rounds without an evaluation
    test_metrics: dict[str, float] | None  # by name, the main one first
    clients: int  # whose answers were accepted
    rejected: int  # whose answers were not: a number was not finite, or a check failed
    up_bytes: int
    down_bytes: int
    wall_s: float
    epsilon: float | None = None  # with privacy: the largest of a client so far; None if the server cannot know
    diagnostics: Numbers | None = None  # with training.diagnostics
    federation: dict[str, int] | None = None  # of Flower's nodes: counts of asked, answered, late, ...
    clip: float | None = None  # with privacy.quantile: the norm that the round's updates were clipped to
    waited_s: float | None = None  # with several ranks: of wall_s, for each other, mean over the ranks
    virtual_s: float | None = None  # the virtual clock at the end of the round
    # With a virtual clock: how many jobs were `asked` for, and how many ended as counted, rejected, stale, late,
    # surplus and lost; staleness_mean and staleness_max of those that counted, with buffered aggregation; `idle`, the
    # share of the devices' time that they waited; `work`, local steps that counted, by class of devices.
    devices: dict[str, Any] | None = None
    # In rounds with training.client_evaluation, over the clients' own held-out samples. The first four are of the main
    # metric, or of the loss if there is none.
    clients_mean: float | None = None
    clients_weighted: float | None = None  # mean weighted by the clients' numbers of samples
    clients_std: float | None = None  # standard deviation over clients, not of a sample: divided by their number
    clients_worst_decile: float | None = None  # mean of the worst tenth of the clients, at least one
    clients_metrics: dict[str, float] | None = None  # loss and metrics over the samples of all of them together
    tuned: dict[str, Any] | None = None  # these five after personal.finetune, in the last round

    def score(self, *, of_clients: bool) -> float | None:
        """Return what the round is judged by, higher is better: the main metric, or the negative loss without one.

        of_clients: the mean of the clients' scores, not the score on the test set. None in a round without it.
        """
        if of_clients:
            only_loss = self.clients_metrics is not None and self.clients_metrics.keys() == {"loss"}
            return -self.clients_mean if only_loss and self.clients_mean is not None else self.clients_mean
        loss = None if self.test_loss is None else -self.test_loss
        return next(iter(self.test_metrics.values())) if self.test_metrics else loss


def describe_divergence(round_: int, clients: int, lr: float, training: TrainingSettings) -> str:
    """Return what to try after a round (from 1) in which no client sent finite numbers."""
    clip = f"clip={training.clip:g}" if training.clip else "no clipping"
    outer = "" if training.outer is None else f", a smaller training.outer.lr (now {training.outer.lr:.3g})"
    return (
        f"round {round_}: all {clients} clients sent numbers that are not finite; "
        f"try a smaller training.lr (now {lr:.3g}){outer}, a smaller training.clip (now {clip}), or warmup_rounds"
    )
