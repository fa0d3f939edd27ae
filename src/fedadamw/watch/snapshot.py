"""What a folder of runs shows now, as JSON for the page: a run's charts, clients and log, or a study's runs."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import CheckpointError
from fedadamw.io.escaping import escape_text
from fedadamw.io.yaml_text import read_yaml
from fedadamw.report import run_charts
from fedadamw.report.client_names import name_clients
from fedadamw.report.client_scores import NAME, Evaluated, read_scores
from fedadamw.report.clients_section import client_charts, describe_worst, worst_clients
from fedadamw.report.devices_section import device_charts, draw_along
from fedadamw.report.metrics import describe_last_score, describe_loss, describe_scores, find_evaluations
from fedadamw.report.run_files import LossesDict, RecordDict
from fedadamw.report.run_page import summarize
from fedadamw.report.virtual_time import format_virtual, name_time
from fedadamw.runner.client_losses import read_losses
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.partition_file import read_mix, read_names
from fedadamw.validation import InputError
from fedadamw.watch.charts import losses_by_client, losses_of_last_round
from fedadamw.watch.state import State, find_state

WAITING = "waiting for the run to start"
MAX_LINES = 300  # of a log
MAX_TAIL = 100_000  # bytes of a log that are read
MAX_CLIENTS = 500  # rows of their table
MAX_RUNS = 2000
DEPTH = 3  # folders from a study's to its runs'

Json = dict[str, Any]


def find_runs(folder: Path) -> dict[str, Path]:
    """Return the runs below `folder` by their path from there; {"": folder} if it is a run itself."""
    if (folder / "config.yaml").is_file():
        return {"": folder}
    patterns = ["/".join([*["*"] * depth, "config.yaml"]) for depth in range(1, DEPTH + 1)]
    found = sorted(path.parent for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in found[:MAX_RUNS]}


def describe_run(folder: Path) -> Json:
    """Return everything that the page of a run shows."""
    try:
        settings, records = _read_settings(folder), RunFolder(folder).records()
    except (InputError, OSError) as error:
        return {"kind": "run", "title": escape_text(folder.name), "state": "failed", "line": escape_text(error)}
    rounds = settings["training"]["rounds"]
    state = find_state(folder, records, rounds)
    lines = [line for line in read_losses(folder / "clients.jsonl") if line["round"] <= len(records)]
    charts, worst = _describe_scores(folder, read_scores(folder / NAME, rounds=len(records)))
    charts |= _draw_devices(folder, records, settings, latest=state.name == "running") if records else {}
    return {
        "kind": "run",
        "title": escape_text(folder.absolute().name),
        "state": state.name,
        "line": escape_text(state.line),
        "progress": len(records) / rounds,
        "report": (folder / "report.html").is_file(),
        "cards": summarize(records) if records else [],
        "charts": _draw(records, lines, settings["partition"]["clients"]) | charts,
        "along": draw_along(records),
        "worst": worst,
        "losses": settings.get("privacy") is None,
        "clients": _summarize_clients(lines),
        "logs": _read_logs(folder, records, rounds),
    }


def describe_study(folder: Path, runs: Mapping[str, Path]) -> Json:
    """Return the runs of a study, or of any folder of runs."""
    rows = [_describe_row(name, path) for name, path in runs.items()]
    states = [row["state"] for row in rows]
    done, default = states.count("finished"), "finished" if rows else "waiting"
    return {
        "kind": "study",
        "title": escape_text(folder.absolute().name),
        "state": next((state for state in ("running", "failed", "stopped") if state in states), default),
        "line": f"{done} of {len(rows)} runs that began are finished" if rows else WAITING,
        "report": (folder / "report.html").is_file(),
        "runs": rows,
    }


def _describe_row(name: str, folder: Path) -> Json:
    row = {"path": name, "name": escape_text(name), "round": 0, "rounds": 0, "score": ""}
    try:
        records, rounds = RunFolder(folder).records(), _read_settings(folder)["training"]["rounds"]
    except (InputError, OSError) as error:
        return {**row, "state": "failed", "line": escape_text(error)}
    state: State = find_state(folder, records, rounds)
    about = {"round": len(records), "rounds": rounds, "score": escape_text(describe_last_score(records))}
    return {**row, **about, "state": state.name, "line": escape_text(state.line)}


def _read_settings(folder: Path) -> Mapping[str, Any]:
    """Return the settings of a run; CheckpointError if they are not those of a run."""
    path = folder / "config.yaml"
    settings: Mapping[str, Any] = read_yaml(str(path), path.read_text())
    try:
        if int(settings["training"]["rounds"]) > 0 and int(settings["partition"]["clients"]) > 0:
            return settings
    except (KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(f"{path}: has not the settings of a run")


def _draw(records: Sequence[RecordDict], lines: Sequence[LossesDict], clients: int) -> Json:
    """Return the charts by name, in Vega-Lite's JSON."""
    charts: dict[str, run_charts.Chart] = {}
    if find_evaluations(records):
        charts["score"] = run_charts.score_chart(records)
    if run_charts.has_epsilon(records):
        charts["epsilon"] = run_charts.epsilon_chart(records)
    if run_charts.has_losses(records):
        charts["losses"] = run_charts.loss_chart(records)
    if records and records[-1].get("federation"):
        charts["answers"] = run_charts.outcomes_chart(records)
    if any(loss is not None for line in lines for loss in line["losses"]):  # not with differential privacy
        charts["clients"] = losses_by_client(lines, clients)
        charts["last"] = losses_of_last_round(lines)
    return {name: run_charts.to_spec(chart) for name, chart in charts.items()}


def _draw_devices(folder: Path, records: Sequence[RecordDict], settings: Mapping[str, Any], *, latest: bool) -> Json:
    """Return the charts of the devices by name, of a run with a virtual clock; {} without one."""
    names = name_clients(folder, read_names(folder))
    charts = device_charts(folder, records, settings, names, latest=latest)
    return {name: run_charts.to_spec(chart) for name, (_, chart) in charts.items()}


def _describe_scores(folder: Path, found: Sequence[Evaluated]) -> tuple[Json, Json]:
    """Return the charts of the clients' scores by name, and the table of those that are served worst."""
    if not found:
        return {}, {}
    mix, names = read_mix(folder), name_clients(folder, read_names(folder))
    charts = client_charts(found, mix, names)
    table = worst_clients(found[-1], mix, names)
    shown = {"line": describe_worst(found[-1]), "headings": table.headings, "rows": table.rows}
    return {name: run_charts.to_spec(chart) for name, (_, chart) in charts.items()}, shown


def _summarize_clients(lines: Sequence[LossesDict]) -> list[list[float | int | None]]:
    """Return (client, rounds sampled, last of them, last loss, mean loss) of each client, worst first."""
    seen: dict[int, list[tuple[int, float | None]]] = {}
    for line in lines:
        for client, loss in zip(line["clients"], line["losses"], strict=False):
            seen.setdefault(client, []).append((line["round"], loss))
    rows: list[list[float | int | None]] = []
    for client, taken in seen.items():
        losses = [loss for _, loss in taken if loss is not None]
        mean = sum(losses) / len(losses) if losses else None
        rows.append([client, len(taken), taken[-1][0], taken[-1][1], mean])
    rows.sort(key=lambda row: (row[3] is not None, -(row[3] or 0.0)))  # not accepted, then by loss
    return rows[:MAX_CLIENTS]


def _read_logs(folder: Path, records: Sequence[RecordDict], rounds: int) -> dict[str, list[str]]:
    """Return the last lines of the rounds, of a federation's events, and of what a study's run printed."""
    logs = {"Rounds": [_describe_round(record, rounds) for record in records[-MAX_LINES:]]}
    if events := _read_tail(folder / "events.jsonl"):
        logs["Events"] = list(map(_describe_event, events))
    if output := _read_tail(folder / "log.txt"):
        logs["Output"] = output
    return logs


def _describe_round(record: RecordDict, rounds: int) -> str:
    score = "".join(f"  {escape_text(name)} {value}" for name, value in describe_scores(record).items())
    rejected = f"  rejected {record['rejected']}" if record["rejected"] else ""
    clock = "" if (seconds := record.get("virtual_s")) is None else f"  {name_time([record])} {format_virtual(seconds)}"
    return f"round {record['round']}/{rounds}{describe_loss(record)}{score}  {record['wall_s']:.2f} s{clock}{rejected}"


def _describe_event(line: str) -> str:
    """Return a line of events.jsonl as `14:02:11 refused client=3`; as it is if it is not one."""
    try:
        event = json.loads(line)
        at, what = time.localtime(event.pop("time")), event.pop("event")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return line
    facts = " ".join(f"{name}={value}" for name, value in event.items())
    return escape_text(f"{time.strftime('%H:%M:%S', at)}  {what}  {facts}")


def _read_tail(path: Path) -> list[str]:
    """Return the last lines of a text file; none if there is no such file."""
    try:
        with open(path, "rb") as file:
            start = max(path.stat().st_size - MAX_TAIL, 0)
            file.seek(start)
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return []
    whole = lines[1:] if start else lines
    return [escape_text(line) for line in whole if line.strip()][-MAX_LINES:]
