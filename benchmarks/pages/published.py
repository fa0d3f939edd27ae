"""The section of docs/performance.md on jobs that other frameworks published: their times beside ours, where there are any."""

# ruff: noqa: E501  (tables)

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import records

THEIRS = Path(__file__).parent.parent / "measure" / "published_jobs" / "published.json"


def section() -> str:
    """The section, with our record of a GPU if there is one."""
    theirs: Mapping[str, Any] = json.loads(THEIRS.read_text())["jobs"]
    record = records.read_newest("published", "cuda")
    rows = [
        (f"`{job}`", row["framework"], "they", _time(row["wall_s"]), _score(row["accuracy"]), row["hardware"])
        for job, found in theirs.items()
        for row in found
    ]
    if record is not None:
        for job, found in record["jobs"].items():
            for algorithm, run in found["algorithms"].items():
                rows.append((f"`{job}`", f"fedadamw, {algorithm}", "we", *_ours(run), record["device"]))
    head = ("job", "framework", "measured by", "time", "accuracy", "hardware")
    return f"""## Jobs that other frameworks published

`python -m benchmarks.measure.published --device cuda --record` runs pfl-research's CIFAR-10 benchmark and FLUTE's FEMNIST job with
their models, partitions and settings (`benchmarks/measure/published_jobs/jobs.py` names the source of each), FedAvg as they have it and
FedAdamW beside it. {_state(record)} What they published was not measured here, on other hardware, so compare no
times across it; "-" could not be looked up:

{_table(head, rows)}
{chr(10).join(_remark(row) for found in theirs.values() for row in found)}
"""


def _remark(row: Mapping[str, Any]) -> str:
    """Where a published time is from."""
    return f"- {row['framework']}: {row['remark']}; {row['source']}"


def _state(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "It has not run on a GPU yet: none was available for these pages."
    return f"Ours: {record['device']}, commit {str(record['commit'])[:9]}, times with start-up and evaluations, without reading the data."


def _ours(run: Mapping[str, Any]) -> tuple[str, str]:
    if "failed" in run:
        return f"failed: {run['failed']}", "-"
    return _time(run["total_s"]), _score(run["accuracy"][-1])


def _time(seconds: float | None) -> str:
    """Minutes and seconds."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest:02} s"


def _score(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.0%}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
