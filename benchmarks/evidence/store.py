"""The results of runs on disk: one file a run, written at once when the run has ended."""

import json
from pathlib import Path
from typing import TypedDict

from benchmarks.common import records
from benchmarks.evidence.jobs import Job
from benchmarks.evidence.rule import tail_score
from benchmarks.evidence.variants import VARIANTS, is_known
from benchmarks.evidence.workloads import WORKLOADS
from fedadamw.checkpoint import write_atomically

FOLDER = records.ROOT / "runs" / "evidence"


class Result(TypedDict):
    """What is kept of a run."""

    workload: str
    variant: str
    lr: float
    seed: int
    tuning: bool
    small: bool
    error: str | None  # why there are no scores: it diverged
    metric: str
    rounds: int
    round: list[int]  # that were evaluated
    score: list[float | None]
    train_loss: float | None  # of the last round
    up_bytes_a_client: float  # in a round
    down_bytes_a_client: float
    clients: int  # in a round
    steps: int  # local steps of a client in a round
    wall_s: float  # of all rounds and evaluations
    cpu_s: float | None  # the same on the processor; None if the run was stopped and went on
    start_s: float  # processor seconds before the first round
    commit: str | None
    device: str
    versions: dict[str, str | None]


class Store:
    """Results by job, in a folder."""

    def __init__(self, folder: Path = FOLDER, *, small: bool = False) -> None:
        self.folder = folder / "small" if small else folder
        self.results: dict[Job, Result] = {}  # of runs that have ended, with today's settings
        self._seen: set[str] = set()  # names of files

    def file(self, job: Job) -> Path:
        """Where the result of a run is."""
        return self.folder / "results" / f"{job.name}.json"

    def work(self, job: Job) -> Path:
        """Where a run keeps its checkpoint until it has ended."""
        return self.folder / "work" / job.name

    def refresh(self) -> "Store":
        """Read the results that are new; those of other settings than today's are left out."""
        for path in sorted((self.folder / "results").glob("*.json")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                self._add(path, json.loads(path.read_text()))
        return self

    def _add(self, path: Path, result: Result) -> None:
        job = Job(*(result[field] for field in Job._fields))  # type: ignore[literal-required]
        known = job.workload in WORKLOADS and job.variant in VARIANTS and is_known(job.variant)
        if known and self.file(job).name == path.name:
            self.results[job] = result

    def write(self, job: Job, result: Result) -> None:
        """Keep the result of a run."""
        self.file(job).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file(job), (json.dumps(result) + "\n").encode())


def points(result: Result) -> float | None:
    """Return the score in points; None if the run diverged."""
    if result["error"] is not None:
        return None
    score = tail_score(result["round"], result["score"], result["rounds"])
    return None if score is None else 100 * score


def last_points(result: Result) -> float | None:
    """Return the score after the last round, in points; None if the run diverged."""
    last = result["score"][-1] if result["error"] is None else None
    return None if last is None else 100 * last
