"""Records and jobs of small runs with a virtual clock, written by hand."""

import json
from pathlib import Path

from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from support.studies import MANIFEST

ENDS = {"rejected": 0, "stale": 0, "late": 0, "surplus": 0, "lost": 0}


def record(round_: int, virtual_s: float, score: float | None = None, **devices) -> dict:
    """A record of a version that two jobs made, in which the phone took twice the steps of the laptop."""
    numbers = {"asked": 2, "counted": 2, **ENDS, "idle": 0.25, "work": {"laptop": 10, "phone": 20}, **devices}
    found = {"round": round_, "lr": 0.1, "train_loss": 1.0, "test_loss": None, "test_metrics": None, "clients": 2}
    found |= {"rejected": 0, "up_bytes": 10**6, "down_bytes": 10**6, "wall_s": 1.0}
    found |= {"virtual_s": virtual_s, "devices": numbers}
    return found if score is None else {**found, "test_loss": 0.5, "test_metrics": {"accuracy": score}}


def job(number: int, client: int, start_s: float, finish_s: float, outcome: str = "counted", **changes) -> dict:
    """A line of jobs.jsonl."""
    found = {"job": number, "client": client, "version": 0, "repeat": 0, "start_s": start_s, "finish_s": finish_s}
    return {**found, "outcome": outcome, "staleness": 0, "steps": 10, "round": 1, **changes}


def write_run(path: Path, records: list[dict], jobs: list[dict]) -> RunFolder:
    """The folder of a buffered run with these records and jobs."""
    run = RunFolder(path)
    classes = "devices.classes={laptop: {share: 0.5}, phone: {share: 0.5}}"
    run.start(load("digits", [f"training.rounds={len(records)}", classes]), MANIFEST)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in records))
    (path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in jobs))
    return run
