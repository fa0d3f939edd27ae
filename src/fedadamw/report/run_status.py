"""Where a run stands, in one line: `running: round 12 of 80, about 3 min left`."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedadamw.io.yaml_text import read_yaml
from fedadamw.report.run_files import RecordDict
from fedadamw.settings.data import PYTHON
from fedadamw.validation import InputError

RECENT = 50  # rounds whose mean time is that of the rounds left


class RunStatus(NamedTuple):
    """What a run's page says above its numbers, and how often it reloads itself."""

    text: str = ""  # nothing for a finished run
    refresh_s: float | None = None  # None: it does not
    resume: str = ""  # how to resume the run if it was killed


FINISHED = RunStatus()


def describe_running(records: Sequence[RecordDict], rounds: int) -> str:
    """Return the line of a run of `rounds` rounds that goes on."""
    left = round_seconds(records) * (rounds - len(records))
    return f"running: round {len(records)} of {rounds}, about {_format_roughly(left)} left"


def describe_stopped(done: int, rounds: int, resume: str, error: str = "") -> str:
    """Return the line of a run that ended after `done` of its `rounds`; "" if it is finished. error: why, if known."""
    if done >= rounds and not error:
        return ""
    line = f"failed after round {done} of {rounds}: {error}" if error else f"stopped after round {done} of {rounds}"
    return f"{line}; {resume}"


def describe_resuming(folder: Path) -> str:
    """Return how to resume the run in `folder`."""
    if (folder / "events.jsonl").exists():
        return f"resume with resume=true and out={shlex.quote(str(folder))} in the run's configuration"
    if _is_from_python(folder):
        return f"resume with the same call of fedadamw.simulate, out={str(folder)!r} and resume=True"
    return f"resume with: fedadamw run --resume --out {shlex.quote(str(folder))}"


def _is_from_python(folder: Path) -> bool:
    """Whether the run has a model and data from Python, which only its own program can make again."""
    path = folder / "config.yaml"
    try:
        return bool(read_yaml(str(path), path.read_text())["data"]["task"] == PYTHON)
    except (OSError, InputError, KeyError, TypeError):
        return False


def round_seconds(records: Sequence[RecordDict]) -> float:
    """Return the mean time of the last rounds."""
    recent = records[-RECENT:]
    return sum(record["wall_s"] for record in recent) / max(len(recent), 1)


def _format_roughly(seconds: float) -> str:
    """Format a time to come: `40 s`, `3 min`, `2 h 10 min`."""
    if seconds < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
