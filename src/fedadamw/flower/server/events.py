"""Writes a federation's events: one JSON line each, to a file and standard error; counts them for Prometheus."""

import json
import sys
import time
from pathlib import Path

from fedadamw.flower.server.monitor import Monitor
from fedadamw.io.disk import report_full_disk

Facts = dict[str, str | float | None]  # of an event


class Events:
    """Writes events (waiting, joined, refused, late, ...; docs/federation.md lists them) to the file `path`."""

    def __init__(self, path: Path, monitor: Monitor) -> None:
        self.path, self.monitor = path, monitor
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, event: str, **facts: str | float | None) -> None:
        """Write one event with its facts."""
        self.monitor.count_event(event)
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        with report_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
