"""jobs.jsonl: each client's job of a run with a virtual clock, in the round in which it ended. Runs do not need it."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedadamw.checkpoint import write_atomically
from fedadamw.engine.clients import EndedJob
from fedadamw.io.disk import report_full_disk


class JobsFile:
    """The jobs of a run, one line each: the fields of EndedJob, and `round`, of whose record they are part."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.jsonl"

    def append(self, round_: int, jobs: Sequence[EndedJob]) -> None:
        """Append the jobs that ended in round `round_` (from 1)."""
        if jobs:
            lines = [json.dumps({"round": round_, **job._asdict()}) + "\n" for job in jobs]
            with report_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(lines))

    def keep(self, rounds: int) -> None:
        """Drop what comes after the first `rounds` rounds, from where the run starts or resumes."""
        if self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            write_atomically(self.path, b"".join(line for line in lines if _round_of(line) <= rounds))


def _round_of(line: bytes) -> float:
    """Return the round of a line; inf of one that was cut off."""
    try:
        return int(json.loads(line)["round"])
    except (ValueError, TypeError, KeyError):
        return float("inf")
