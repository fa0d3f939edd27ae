"""Buffered aggregation: what it cannot do, each as one line that says what to set."""

from fedadamw.algorithms import registry
from fedadamw.engine.round import check_buffer
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import check

BUFFERED = "training.aggregation=buffered"


def check_buffered(experiment: Experiment) -> None:
    """Raise InputError if settings contradict training.aggregation, whichever it is."""
    t, lora, name = experiment.training, experiment.lora, experiment.algorithm_name
    if not t.buffered:
        _check_synchronous(t)
        return
    check(experiment.privacy is None, f"{BUFFERED}: no account of privacy covers stale updates; leave out privacy")
    check(t.mean == "weighted", f"{BUFFERED} adds answers up as they come: training.mean={t.mean!r} needs all at once")
    check(not t.diagnostics, f"{BUFFERED}: diagnostics compare clients that began together; set diagnostics=false")
    check(experiment.shards == 1, f"{BUFFERED}: clients train in one process; set shards=1 (not {experiment.shards})")
    if lora is not None:
        of_version = f"{BUFFERED}: lora.aggregate={lora.aggregate!r} goes by rounds in which all have the same model"
        check(not lora.changes_base and lora.aggregate != "alternate", f"{of_version}; use factors or frozen-a")
    whole = len(registry.ALGORITHMS[name].changes) > 1
    check(
        not whole or t.staleness == "none",
        f"{BUFFERED}: the server of {name} needs every client's whole part; set training.staleness=none",
    )
    by_column = experiment.partition.kind == "column"  # the number of clients is that of the column's values
    if not by_column:
        check_buffer(t, experiment.partition.clients)


def _check_synchronous(t: TrainingSettings) -> None:
    """Raise InputError if a setting of buffered aggregation is set without it."""
    for setting in ("buffer", "concurrency", "max_staleness"):
        value = getattr(t, setting)
        check(value is None, f"training.{setting}={value} is a setting of {BUFFERED}")
    check(t.staleness == "root", f"training.staleness={t.staleness} is a setting of {BUFFERED}")
