"""What happens in a federation, one JSON line each, on standard error and in a file; and counted, for a monitor."""

import json
import sys
import time
from pathlib import Path

from fedadamw.flower.server.monitor import Monitor
from fedadamw.io.disk import report_full_disk


class Events:
    """Writes events: waiting, joined, refused, late, ..."""

    def __init__(self, path: Path, monitor: Monitor) -> None:
        self.path, self.monitor = path, monitor
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, event: str, **facts: str | float | None) -> None:
        """One event, with what is to be known of it."""
        self.monitor.count_event(event)
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})
        with report_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)
