"""Files for a paper: charts as wide as a column in SVG and PDF, tables in CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import vl_convert

from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_text
from fedadamw.report.client_scores import Evaluated
from fedadamw.report.jobs import OUTCOMES
from fedadamw.report.metrics import TUNED
from fedadamw.report.run_charts import Chart, to_spec
from fedadamw.validation import check, check_one_of

EXPORTS = ("csv", "svg", "pdf", "tex")
FOLDER = "export"
WIDTH, HEIGHT = 190, 120  # of the plot in points (pixels in SVG); with its axes about 240, a column of 3.3 inches
FONT_SIZE = 8  # points
Cells = Mapping[str, object]  # column -> value


def parse_exports(text: str) -> list[str]:
    """Return the kinds of files in a list with commas; raises InputError for an unknown one."""
    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        check_one_of("--export", kind, EXPORTS)
    check(len(set(kinds)) == len(kinds), f"--export {text}: names one kind twice")
    return kinds


def write_charts(charts: Mapping[str, tuple[str, Chart]], note: str, folder: Path, kinds: Sequence[str]) -> list[str]:
    """Write each chart as .svg or .pdf or both, named by its heading; return the files' names.

    charts: any key -> (heading, chart of WIDTH and HEIGHT). note: written small below each with bands; may be empty.
    """
    names = []
    for heading, chart in charts.values():
        spec = _fit_column(to_spec(chart), note)
        stem = make_file_name(heading)
        if "svg" in kinds:
            write_atomically(folder / f"{stem}.svg", vl_convert.vegalite_to_svg(spec).encode())
            names.append(f"{stem}.svg")
        if "pdf" in kinds:
            write_atomically(folder / f"{stem}.pdf", vl_convert.vegalite_to_pdf(spec))
            names.append(f"{stem}.pdf")
    return names


def make_file_name(heading: str) -> str:
    """Return a heading up to its first comma or colon as a file's name: `Test loss, mean` is `test-loss`."""
    return re.sub(r"[^a-z0-9.]+", "-", re.split("[,:]", heading)[0].lower().replace("'", "")).strip("-.") or "chart"


def _fit_column(spec: dict[str, Any], note: str) -> dict[str, Any]:
    """Return the chart with small letters and a legend of two columns, and the note below it."""
    small = {"labelFontSize": FONT_SIZE, "titleFontSize": FONT_SIZE}
    config = dict(spec.get("config", {}))
    config |= {
        "axis": {**config.get("axis", {}), **small},
        "legend": {**small, "offset": 4, "symbolSize": 50},
        "title": {**config.get("title", {}), "fontSize": FONT_SIZE + 1, "subtitleFontSize": FONT_SIZE},
        "padding": 2,
        "aria": False,
    }
    fitted: dict[str, Any] = _shrink({**spec, "config": config})
    if note and "layer" in spec:
        style = {"fontSize": FONT_SIZE - 1, "fontWeight": "normal", "color": "#374151", "orient": "bottom"}
        fitted["title"] = {"text": _break_lines(note), "anchor": "start", "offset": 6, **style}
    return fitted


def _shrink(part: Any) -> Any:
    """Return a part of a chart with legends of two columns and smaller marks."""
    if isinstance(part, list):
        return [_shrink(each) for each in part]
    if not isinstance(part, dict):
        return part
    small = {key: value if key == "values" else _shrink(value) for key, value in part.items()}
    if part.get("orient") == "bottom" and "columns" in part:
        small |= {"columns": 2, "labelLimit": 90}
    if isinstance(part.get("mark"), dict):
        small["mark"] = {
            **part["mark"],
            **{k: part["mark"][k] / 2 for k in ("size", "strokeWidth") if k in part["mark"]},
        }
    return small


def _break_lines(text: str, width: int = 60) -> list[str]:
    """Break a text into lines of at most `width` characters, if its words are not longer."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def write_csv(rows: Sequence[Cells], path: Path) -> None:
    """Write rows with all of their columns, in the order in which they first appear; what is missing is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, [escape_text(column) for column in columns], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({escape_text(k): "" if v is None else v for k, v in row.items()} for row in rows)
    write_atomically(path, text.getvalue().encode())


def record_cells(run: Cells, records: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return a row for each record: the run's cells, then its numbers, metrics as `test_accuracy` and so on.

    Those pooled over the evaluated clients are `clients_pooled_accuracy`, beside `clients_mean`.
    """
    rows, sent = [], 0
    for record in records:
        sent += record["up_bytes"]
        row: dict[str, object] = {**run, **{k: v for k, v in record.items() if not isinstance(v, dict)}}
        row.pop("test_metrics", None)
        row = {k: v for k, v in row.items() if not (k.startswith("clients_") and v is None)}
        row |= {f"test_{name}": value for name, value in (record["test_metrics"] or {}).items()}
        row |= {f"clients_pooled_{name}": value for name, value in (record.get("clients_metrics") or {}).items()}
        tuned = record.get("tuned") or {}
        row |= {f"{TUNED}{name}": value for name, value in tuned.items() if not isinstance(value, dict)}
        row["sent_bytes"] = sent
        row |= _device_cells(record.get("devices") or {})
        numbers = record.get("diagnostics") or {}
        row |= {name: value for name, value in numbers.items() if not isinstance(value, dict)}
        rows.append(row)
    return rows


def _device_cells(numbers: Mapping[str, Any]) -> dict[str, object]:
    """Return the numbers of a round's devices: `jobs_counted`, `staleness_mean`, `idle`, `work_phone` and so on."""
    named = {f"jobs_{name}" if name in ("asked", *OUTCOMES) else name: value for name, value in numbers.items()}
    work: Mapping[str, int] = named.pop("work", {})
    return {**named, **{f"work_{name}": steps for name, steps in work.items()}}


def client_cells(run: Cells, evaluations: Sequence[Evaluated]) -> list[dict[str, object]]:
    """Return a row for each evaluated client and evaluation: the run's cells, the client's number and its scores."""
    rows = []
    for found in evaluations:
        for i, client in enumerate(found.clients.tolist()):
            samples = int(found.samples[i]) if isfinite(found.samples[i]) else None
            values = {name: float(column[i]) for name, column in found.metrics.items()}
            own = {name: value if isfinite(value) else None for name, value in values.items()}
            rows.append({**run, "round": found.round, "client": client, "held_out_samples": samples, **own})
    return rows
