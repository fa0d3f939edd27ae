"""jobs.jsonl: the ended jobs of a run with a virtual clock, one a line; a window of them is read without the rest."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

NAME = "jobs.jsonl"
BEFORE = 2**17  # bytes that are read before the window's first line: jobs end out of order where a round has late ones
MOST = 2**22  # bytes that are read of a window
OUTCOMES = ("counted", "rejected", "stale", "late", "surplus", "lost")


class Job(NamedTuple):
    """One client's work on one version of the model."""

    client: int
    version: int  # from 0
    start_s: float  # virtual
    finish_s: float
    outcome: str  # of OUTCOMES
    staleness: int
    steps: int


def read_jobs(path: Path, begin_s: float, end_s: float) -> list[Job]:
    """Return the jobs that ran between two virtual times, by when they ended; none without the file.

    Damaged lines are left out, and jobs that ended megabytes of lines later, of a run with very many.
    """
    if not path.exists():
        return []
    with open(path, "rb") as file:
        place = _find(file, path.stat().st_size, begin_s)
        file.seek(max(place - BEFORE, 0))
        lines = file.read(MOST + place - max(place - BEFORE, 0)).split(b"\n")
    jobs = [job for job in map(_parse, lines) if job is not None]
    return [job for job in jobs if job.finish_s > begin_s and job.start_s < end_s]


def _find(file: BinaryIO, size: int, begin_s: float) -> int:
    """Return a place in the file before which nearly all jobs ended before `begin_s`."""
    low, high = 0, size
    while high - low > BEFORE // 8:
        middle = (low + high) // 2
        file.seek(middle)
        finish_s = next((job.finish_s for job in _jobs_from(file) if job is not None), None)
        low, high = (middle, high) if finish_s is not None and finish_s <= begin_s else (low, middle)
    return low


def _jobs_from(file: BinaryIO) -> Iterator[Job | None]:
    """Yield the jobs of the whole lines after the file's place; None for a damaged one."""
    file.readline()
    for line in file:
        yield _parse(line)


def _parse(text: bytes) -> Job | None:
    try:
        line = json.loads(text)
        return Job(
            client=int(line["client"]),
            version=int(line["version"]),
            start_s=float(line["start_s"]),
            finish_s=float(line["finish_s"]),
            outcome=str(line["outcome"]),
            staleness=int(line["staleness"] or 0),
            steps=int(line["steps"]),
        )
    except (ValueError, TypeError, KeyError):
        return None
