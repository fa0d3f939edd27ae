"""The record of a run: one JSON file, whole after every measurement, also if the run is cut off."""

import json
import time
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import write_atomically

DONE, FAILED, RUNNING, LEFT_OUT, CUT_OFF = "done", "failed", "running", "left out", "cut off"
Found = dict[str, Any]


class Record:
    """The content of the file; `save` after each change."""

    def __init__(self, path: Path, content: Found) -> None:
        self.path, self.content = path, content

    @staticmethod
    def read(path: Path) -> "Record":
        """The record that another process wrote."""
        return Record(path, json.loads(path.read_text()))

    def save(self) -> None:
        """Write the file: a reader finds the old content or the new one, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(self.content, indent=1) + "\n").encode())

    @property
    def parts(self) -> dict[str, Found]:
        """What is known of each part, by name, in the order in which they run."""
        parts: dict[str, Found] = self.content["parts"]
        return parts

    def waiting(self) -> list[str]:
        """The parts that have not begun."""
        return [name for name, part in self.parts.items() if "status" not in part]

    def running(self) -> str | None:
        """The part that has begun and not ended, if there is one."""
        return next((name for name, part in self.parts.items() if part.get("status") == RUNNING), None)

    def begin(self, name: str) -> None:
        """Note that a part begins now."""
        self.parts[name] |= {"status": RUNNING, "began": round(time.time(), 1), "measured": {}}
        self.save()

    def end(self, name: str, status: str, why: str = "") -> None:
        """Note that a part has ended, and why if it is not done."""
        part = self.parts[name]
        began = part.pop("began", None)
        part |= {"status": status, "ended": round(time.time(), 1)}
        part["seconds"] = 0.0 if began is None else round(time.time() - began, 1)
        if why:
            part["why"] = why
        self.save()

    def end_all(self, status: str, why: str) -> None:
        """End what is running as `status`, and leave out what has not begun."""
        running = self.running()
        if running is not None:
            self.end(running, status, why)
        for name in self.waiting():
            self.end(name, LEFT_OUT, why)
