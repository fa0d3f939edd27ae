"""asked.jsonl of a federation with differential privacy: each request to train, written before it is sent.

A node may have worked for every one of them, whether its answer came or not. Nothing is ever removed from the file.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fedadamw.checkpoint import CheckpointError
from fedadamw.io.disk import report_full_disk

NAME = "asked.jsonl"


class AskedFile:
    """The requests of a run, counted by client. new: whether the run begins, so that an older file is replaced."""

    def __init__(self, folder: Path, *, new: bool) -> None:
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        if new:
            self.path.write_bytes(b"")
        self.counts = Counter(read_asked(folder) or {})

    def add(self, client: int, round_: int) -> None:
        """Note a request of round `round_` (from 0) to a client; it is on disk when this returns."""
        line = json.dumps({"round": round_ + 1, "client": client}) + "\n"
        with report_full_disk(self.path), open(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self.counts[client] += 1


def read_asked(folder: Path) -> Mapping[int, int] | None:
    """Return how often each client was asked, None of a simulated run; CheckpointError if the file is damaged."""
    path = folder / NAME
    if not path.exists():
        return None
    content = path.read_bytes()
    try:
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        return Counter(int(json.loads(line)["client"]) for line in lines)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
