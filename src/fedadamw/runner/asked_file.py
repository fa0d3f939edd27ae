"""asked.jsonl of a federation with differential privacy: each request to train, written before it is sent.

A node may have worked for every one of them, whether its answer came or not. When a round's answers are summed, there
is a line without a client: if the server's process is lost before it has saved the round, the round is done again with
other noise, and what was sent of the first stays known. Nothing is ever removed from the file but a torn last line.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedadamw.checkpoint import CheckpointError
from fedadamw.io.disk import report_full_disk

NAME = "asked.jsonl"


class Asked(NamedTuple):
    """What a run's file tells."""

    times: Mapping[int, int]  # how often each client was asked
    sums: int  # how often a round's answers were summed


class AskedFile:
    """The requests of a run, counted by client. new: whether the run begins, so that an older file is replaced."""

    def __init__(self, folder: Path, *, new: bool) -> None:
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        if new:
            self.path.write_bytes(b"")
        found = read_asked(folder) or Asked({}, 0)
        self.counts, self.sums = Counter(found.times), found.sums
        if self.path.exists():
            os.truncate(self.path, len(_whole_lines(self.path.read_bytes())))  # else the next line would be torn, too

    def add(self, client: int, round_: int) -> None:
        """Note a request of round `round_` (from 0) to a client; it is on disk when this returns."""
        self._append({"round": round_ + 1, "client": client})
        self.counts[client] += 1

    def add_sum(self, round_: int) -> None:
        """Note that the answers of round `round_` (from 0) are summed now; it is on disk when this returns."""
        self._append({"round": round_ + 1})
        self.sums += 1

    def _append(self, facts: Mapping[str, int]) -> None:
        line = json.dumps(facts) + "\n"
        with report_full_disk(self.path), open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def read_asked(folder: Path) -> Asked | None:
    """Return what the run in `folder` has asked, None of a simulated run; CheckpointError if the file is damaged."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        facts = [dict(json.loads(line)) for line in _whole_lines(path.read_bytes()).splitlines()]
        clients = [int(each["client"]) for each in facts if "client" in each]
        return Asked(Counter(clients), sum(int(each["round"]) > 0 for each in facts) - len(clients))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
