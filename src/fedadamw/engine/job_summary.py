"""The jobs of a round in a few numbers, for its record: see Record.devices."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from fedadamw.devices.fleet import Fleet
from fedadamw.engine.clients import EndedJob, Outcome

DIGITS = 6  # of a share or a mean


def summarise_jobs(jobs: Sequence[EndedJob], fleet: Fleet, *, asked: int, idle: float) -> dict[str, Any]:
    """Return how many jobs were `asked` for, how many ended in which way, and what counted of their work.

    idle: the share of the devices' time in which they waited.
    """
    outcomes = Counter(job.outcome for job in jobs)
    work = dict.fromkeys(fleet.class_names, 0)
    for job in jobs:
        if job.outcome == "counted":
            work[fleet.class_names[fleet.class_of[job.client]]] += job.steps
    counts = {outcome: outcomes[outcome] for outcome in get_args(Outcome)}
    return {"asked": asked, **counts, "idle": round(idle, DIGITS), "work": work}


def summarise_staleness(jobs: Sequence[EndedJob]) -> dict[str, Any]:
    """Return the mean and the largest staleness of the jobs that counted; 0 if none did."""
    found = [job.staleness for job in jobs if job.outcome == "counted"] or [0]
    return {"staleness_mean": round(sum(found) / len(found), DIGITS), "staleness_max": max(found)}
