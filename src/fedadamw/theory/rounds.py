"""The paper's figures from runs with training.diagnostics: variance of v, client drift, alignment, by round and run."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, Literal, get_args

import altair as alt

from fedadamw.report.run_charts import Chart
from fedadamw.report.study_files import Row
from fedadamw.report.study_marks import AXES, Size, kind_chart, line_chart
from fedadamw.runner.folder import RunFolder
from fedadamw.validation import InputError, check

Figure = Literal["variance", "drift", "alignment"]
FIGURES: tuple[Figure, ...] = get_args(Figure)
Rounds = Sequence[Mapping[str, Any]]  # a run's engine.diagnostics.Numbers, each with its `round`
SIZE = Size(300, 240)
TITLES = {
    "v_dispersion": "Spread of v over clients: root of its variance over its mean",
    "v_variance": "Variance of v over clients, mean over rounds",
    "v_over_rounds": "Spread over rounds: of the mean v of a class over that of all",
    "drift": "Client drift: mean distance from the clients' mean",
    "drift_share": "Drift over the norm of the updates: 1 if these cancel out",
    "cosine": "Cosine of the clients' updates with the last global direction",
}
HEADINGS = ("run", "rounds", "first", "mean", "last")
OF_TABLE: dict[Figure, str] = {"variance": "v_dispersion", "drift": "drift_share", "alignment": "cosine"}


def read_rounds(paths: Sequence[Path]) -> dict[str, Rounds]:
    """Return the diagnostics of each run, by its folder's name, or its path where two have one name.

    Raises InputError if a folder holds no run, or one without diagnostics.
    """
    names = [path.resolve().name for path in paths]
    found: dict[str, Rounds] = {}
    for path, name in zip(paths, names, strict=True):
        folder = RunFolder(path)
        check(folder.started, f"{path} holds no run (no config.yaml)")
        rounds = [
            {"round": record["round"], **record["diagnostics"], **_ratio(record["diagnostics"])}
            for record in folder.records()
            if isinstance(record.get("diagnostics"), Mapping)
        ]
        check(bool(rounds), f"{path}: has no diagnostics; run it with -s training.diagnostics=true --ranks 1")
        found[name if names.count(name) == 1 else str(path)] = rounds
    return found


def _ratio(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the drift as a share of the norm of the updates."""
    drift, norm = numbers.get("drift"), numbers.get("update_norm")
    return {"drift_share": drift / norm if drift is not None and norm else None}


def title_of(figure: Figure) -> str:
    """Return what the table's numbers are."""
    return TITLES[OF_TABLE[figure]]


def draw(figure: Figure, runs: Mapping[str, Rounds]) -> Chart:
    """Return the figure; raises InputError if no run has its numbers."""
    panels: Mapping[Figure, Callable[[Mapping[str, Rounds]], list[alt.Chart | alt.LayerChart]]] = {
        "variance": _variance_panels,
        "drift": lambda runs: [_lines(runs, "drift"), _lines(runs, "drift_share")],
        "alignment": lambda runs: [_lines(runs, "cosine")],
    }
    return alt.hconcat(*panels[figure](runs), spacing=32)


def _variance_panels(runs: Mapping[str, Rounds]) -> list[alt.Chart | alt.LayerChart]:
    panels = [_lines(runs, "v_dispersion"), _kinds(runs, "v_variance", _mean_by_kind(runs))]
    over_rounds = _spread_over_rounds(runs)
    return [*panels, _kinds(runs, "v_over_rounds", over_rounds)] if over_rounds else panels


def _lines(runs: Mapping[str, Rounds], key: str) -> alt.LayerChart:
    """Return one number by round, a line for each run."""
    rows: list[Row] = [
        {"variant": name, "round": numbers["round"], key: value}
        for name, rounds in runs.items()
        for numbers in rounds
        if (value := numbers.get(key)) is not None
    ]
    if not rows:
        raise InputError(_missing(key))
    limits = (-1.0, 1.0) if key == "cosine" else (0.0, inf)
    title = AXES.get(key, "share")
    chart = line_chart(rows, "round", key, list(runs), title=title, limits=limits, size=SIZE)
    return chart.properties(title=_wrap(TITLES[key]))


def _missing(key: str) -> str:
    if key == "cosine":
        return "there is no last direction to align with after one round: run at least two"
    return "the runs' algorithms keep no second moment"


def _kinds(runs: Mapping[str, Rounds], key: str, rows: Sequence[Row]) -> alt.Chart:
    """Return one number for each class of weights, a point for each run."""
    return kind_chart(rows, key, list(runs), size=SIZE).properties(title=_wrap(TITLES[key]))


def _by_kind(rounds: Rounds, key: str, unit: str | None = None) -> dict[str, list[float]]:
    """Return the values over rounds by class of weights, each divided by its round's number `unit`."""
    values: dict[str, list[float]] = {}
    for numbers in rounds:
        divisor = 1.0 if unit is None else numbers.get(unit)
        for kind, value in (numbers.get(key) or {}).items():
            if value is not None and divisor:
                values.setdefault(kind, []).append(value / divisor)
    return values


def _mean_by_kind(runs: Mapping[str, Rounds]) -> list[Row]:
    return [
        {"variant": name, "kind": kind, "v_variance": statistics.mean(values)}
        for name, rounds in runs.items()
        for kind, values in _by_kind(rounds, "v_variance_by_kind").items()
    ]


def _spread_over_rounds(runs: Mapping[str, Rounds]) -> list[Row]:
    """Return the standard deviation over rounds of a class's share of v, over its mean.

    A share, since a v that is carried grows for some thousand steps until it holds as many gradients as it can.
    """
    return [
        {"variant": name, "kind": kind, "v_over_rounds": statistics.stdev(values) / statistics.mean(values)}
        for name, rounds in runs.items()
        for kind, values in _by_kind(rounds, "v_mean_by_kind", "v_mean").items()
        if len(values) > 1 and statistics.mean(values) > 0
    ]


def table_rows(figure: Figure, runs: Mapping[str, Rounds]) -> list[list[str]]:
    """Return the table's cells under HEADINGS: the figure's main number of each run."""
    rows = []
    for name, rounds in runs.items():
        values = [value for numbers in rounds if (value := numbers.get(OF_TABLE[figure])) is not None]
        cells = (values[0], statistics.mean(values), values[-1]) if values else ()
        rows.append([name, f"{len(rounds):,}", *(f"{value:.4g}" for value in cells), *["-"] * (3 - len(cells))])
    return rows


def _wrap(title: str) -> alt.TitleParams:
    """Return a title in two lines, cut at its first colon or comma."""
    for mark in (": ", ", "):
        first, _, rest = title.partition(mark)
        if rest:
            return alt.TitleParams(first, subtitle=rest, fontSize=12)
    return alt.TitleParams(title, fontSize=12)
