"""Runs an experiment as a demonstration on this machine: a SuperLink and nodes as processes, with TLS and keys."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedadamw.flower import new_app
from fedadamw.flower.local.testbed import LocalFederation
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.paths import make_absolute
from fedadamw.report.metrics import describe_loss, describe_scores, format_metric, label
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.tracking import check_trackers
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

Say = Callable[[str], None]
NODES = 4
NodeWords = Mapping[str, str | int | float]  # of a node's configuration


def run_demo(experiment: Experiment, folder: Path, *, nodes: Sequence[NodeWords], say: Say) -> Path:
    """Run `experiment` on local nodes, each with its words, in `folder`, which must be new or empty.

    Returns the run's folder.
    """
    _check(experiment, nodes)
    experiment = make_absolute(experiment)  # the server and the nodes start in other folders
    folder = folder.resolve()
    with RunFolder(folder).lock():
        check(not any(folder.iterdir()), f"{folder}: not empty; choose another --out")
        new_app.write_app(folder / "app", experiment)
        _run_in(folder, nodes, say)
    return folder / "run"


def _run_in(folder: Path, nodes: Sequence[NodeWords], say: Say) -> None:
    """Start the SuperLink and the nodes, run the app in `folder` and wait until it ends."""
    with LocalFederation(folder, len(nodes)) as bed:
        say("SuperLink: TLS, and only nodes with registered keys")
        bed.start_superlink()
        for node, words in enumerate(nodes):
            bed.register(node)
            bed.start_node(node, {"threads": 1, **words})
        run = bed.submit(folder / "app", {"out": str(folder / "run")})
        say(f"run {run} on {len(nodes)} nodes; they first load libraries, data and model")
        status = _follow(bed, run, folder / "run", say)
        if status != "finished:completed":
            raise InputError(f"the run is {status}; the end of its log: {bed.run_log(run).strip()[-800:]}")


def plan_nodes(count: int | None, files: Sequence[Path], held_out: float | None) -> list[NodeWords]:
    """Return the words of each node: of `count` nodes of a common data set, or of those with own data, a file each.

    held_out: share of its own data that a node holds out.
    """
    if not files:
        check(held_out is None, "--held-out is a share of a node's own data: give --data")
        return [{} for _ in range(count or NODES)]
    check(count in (None, len(files)), f"--nodes {count}: there are {len(files)} --data, one for each node")
    check(held_out is None or 0 < held_out < 1, f"--held-out {held_out}: give a share of the data, between 0 and 1")
    share = {} if held_out is None else {"held-out": held_out}
    for file in files:
        check(file.exists(), f"--data {file}: no such file or folder")
    return [{"data": str(file.resolve()), **share} for file in files]


def _check(experiment: Experiment, nodes: Sequence[NodeWords]) -> None:
    """Raise InputError if `experiment` cannot run on such local nodes."""
    f, s, t = experiment.federation, experiment.partition, experiment.training
    check_settings(experiment, remote=True)
    check_trackers(experiment.trackers)
    own = all("data" in words for words in nodes)
    check(own or s.kind != "nodes", "partition.kind='nodes': give each node's own data with --data")
    check(not own or s.kind == "nodes", f"partition.kind={s.kind!r}: --data is for partition.kind=nodes")
    needed = max(f.quorum_of(t.clients_per_round), min(f.wait_for or s.clients, s.clients))
    check(
        len(nodes) >= needed or s.kind == "column",
        f"--nodes {len(nodes)}: the run waits for {needed} clients (partition.clients, federation.wait_for)",
    )


def next_free_folder(folder: Path) -> Path:
    """Return `folder`, or the first empty or new one of `folder-2`, `folder-3`, ..."""
    candidate, number = folder, 1
    while candidate.exists() and any(candidate.iterdir()):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _follow(bed: LocalFederation, run: int, out: Path, say: Say) -> str:
    """Print rounds and events until the run ends; return its status."""
    seen = {"metrics.jsonl": 0, "events.jsonl": 0}
    while True:
        status = bed.status(run)
        for name in seen:
            lines = (out / name).read_text().splitlines() if (out / name).exists() else []
            for line in lines[seen[name] :]:
                say(format_record(json.loads(line)))
            seen[name] = len(lines)
        if status.startswith("finished"):
            return status
        time.sleep(1.0)


def format_record(record: dict[str, Any]) -> str:
    """Format a round's record or an event as one line."""
    if "event" in record:
        facts = ", ".join(
            f"{k} {v}" for k, v in record.items() if k not in ("time", "event", "node") and v not in (None, "")
        )
        return f"  {record['event']}: {facts}"
    scores = {label(name): format_metric(name, value) for name, value in (record["test_metrics"] or {}).items()}
    score = "".join(f"  {name} {value}" for name, value in (scores | describe_scores(cast(RecordDict, record))).items())
    return f"round {record['round']}{describe_loss(cast(RecordDict, record))}{score}  {record['wall_s']:.1f} s"
