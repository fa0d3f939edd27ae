"""Studies that take seconds, and waiting for what another process does."""

import time
from dataclasses import replace

from fedadamw.engine.record import Record
from fedadamw.study.plan import plan

TINY = ("-s", "training.steps=1", "-s", "training.clients_per_round=2", "-s", "checkpoint_every=2")


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


NAN = float("nan")
EVALUATED = ({"matthews": -0.0625, "accuracy": 0.75}, {"matthews": 0.4125, "accuracy": 0.875})
MANIFEST = {
    "versions": {},
    "commit": None,
    "seed": 0,
    "device": "cpu",
    "data": {},
    "folders": [],
    "partition": {"clients": 2, "fingerprint": "00"},
    "model": {"layout": "00", "d": 1},
}


def rounds(evaluated=EVALUATED) -> list[Record]:
    """Four rounds, every other one evaluated."""
    common = {"lr": 0.1, "train_loss": 1.0, "clients": 2, "rejected": 0, "up_bytes": 8, "down_bytes": 8, "wall_s": 1.0}
    found = []
    for i, tested in enumerate(evaluated, start=1):
        found.append(Record(round=2 * i - 1, test_loss=None, test_metrics=None, **common))
        found.append(Record(round=2 * i, test_loss=0.5, test_metrics=tested, **common))
    return found


LAST_IS_NONE = ({"spearman": 0.25}, {"spearman": NAN})


def study_of(parent, **scores):
    """Runs of a study that are done, one an algorithm, by what their two evaluations came to."""
    runs = plan("digits", list(scores), [0], [("training.rounds", 4)], parent)
    for run, evaluated in zip(runs, scores.values(), strict=True):
        run.folder.start(run.experiment, MANIFEST)
        for record in rounds(evaluated):
            run.folder.append(record)
    return runs


def of_clients(means, tested=True, metric="accuracy") -> list[Record]:
    """Four rounds; every other one with scores of the clients, and of the model if it is `tested`."""
    found = rounds([{metric: mean + 0.1} if tested else None for mean in means])
    for record, mean in zip(found[1::2], means, strict=True):
        found[record.round - 1] = replace(
            record,
            test_loss=record.test_loss if tested else None,
            clients_mean=mean,
            clients_weighted=mean + 0.01,
            clients_std=0.05,
            clients_worst_decile=mean - 0.2,
            clients_metrics={"loss": 0.7, metric: mean + 0.02},
        )
    return found
