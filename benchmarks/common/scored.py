"""Runs that leave a JSON file with a `score`, in points, and `cpu_s`: reading them, and a line on each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class ScoredJob(Protocol):
    """One run."""

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> Path:
        """Where its result is, once it is finished."""


def read(job: ScoredJob) -> dict[str, Any]:
    """Return the result of a run."""
    found: dict[str, Any] = json.loads(job.file.read_text())
    return found


def score_of(job: ScoredJob) -> float | None:
    """Return the score of a run that has ended, in points; None if it diverged."""
    found: float | None = read(job)["score"]
    return found


def say(job: ScoredJob) -> str:
    """Return the line that is printed when a run has ended."""
    result = read(job)
    told = "diverged" if result["score"] is None else f"{result['score']:.1f}"
    return f"{job.name}: {told} in {result['cpu_s']:.0f} s"


def scores_of(cell: Mapping[str, Any]) -> dict[int, float]:
    """Return the scores by seed, in points, of runs that did not diverge."""
    return {run["seed"]: run["score"] for run in cell["runs"] if run["score"] is not None}
