"""Whether a run goes on, stopped, failed or is finished: from its records, its lock, its page and the time."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedadamw.io.escaping import unescape_html
from fedadamw.report.run_files import RecordDict
from fedadamw.report.run_status import describe_resuming, describe_running, describe_stopped, round_seconds
from fedadamw.runner.folder import RunFolder

LOCKS = Path("/proc/locks")  # Linux lists there who holds which file's lock
MIN_SILENCE_S = 60.0  # and ten rounds: after that, a run without news that holds no lock here is taken as stopped
STATUS = re.compile(r"<p class=status role=status>([^<]*)</p>")
HEAD = 10_000  # bytes at the beginning of a page that contain its status


class State(NamedTuple):
    """Where a run stands."""

    name: str  # waiting, running, stopped, failed or finished
    line: str  # the same for a reader


def find_state(folder: Path, records: Sequence[RecordDict], rounds: int) -> State:
    """Return the state of the run of `rounds` rounds in `folder`. Reading it does not disturb the run."""
    if len(records) >= rounds:
        return State("finished", f"finished: {rounds} rounds")
    if is_locked(folder):
        return State("running", describe_running(records, rounds) if records else "running: the first round")
    if ended := RunFolder(folder).ended:
        return State("finished", f"finished: {ended}")
    said = _read_status(folder / "report.html", since=folder / "metrics.jsonl")
    if said:
        return State("failed" if said.startswith("failed") else "stopped", said)
    silent = time.time() - _newest(folder)
    if silent < MIN_SILENCE_S + 10 * round_seconds(records):  # the lock of another machine is not seen here
        return State("running", describe_running(records, rounds) if records else "running: the first round")
    return State("stopped", describe_stopped(len(records), rounds, describe_resuming(folder)))


def is_locked(folder: Path) -> bool:
    """Whether a process of this machine holds the lock of `folder`; looking does not touch it."""
    try:
        about, lines = folder.stat(), LOCKS.read_text().splitlines()
    except OSError:
        return False
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    return any("FLOCK" in line and place in line.split() for line in lines)


def _read_status(page: Path, since: Path) -> str:
    """Return what a page says of a stopped run; "" if it is of a running one, or older than the file `since`."""
    try:
        if page.stat().st_mtime < since.stat().st_mtime:
            return ""
        with open(page, encoding="utf-8") as file:
            match = STATUS.search(file.read(HEAD))
    except (OSError, UnicodeDecodeError):
        return ""
    said = unescape_html(match[1]) if match else ""
    return said if said.startswith(("stopped", "failed")) else ""


def _newest(folder: Path) -> float:
    """Return when one of the run's files was last written."""
    names = ("config.yaml", "metrics.jsonl", "events.jsonl", "log.txt")
    return max((path.stat().st_mtime for path in map(folder.joinpath, names) if path.exists()), default=0.0)
