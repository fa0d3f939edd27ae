"""The tables and pictures of docs/privacy.md on accuracy against epsilon, from measure/private_curves."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import altair as alt

from benchmarks.common.records import read_newest
from benchmarks.evidence.rule import Paired
from fedadamw.report.intervals import mean_interval
from fedadamw.report.run_charts import Chart
from fedadamw.report.study_marks import COLORS

NAMES = {"fedadamw": "FedAdamW", "local-adamw": "Local AdamW", "fedavg": "FedAvg"}
HEADS = ["epsilon", *NAMES.values(), "FedAdamW less Local AdamW", "FedAdamW less FedAvg"]
CHOSEN_HEADS = ["epsilon", *(f"{name}: lr, C" for name in NAMES.values())]
MISSING = "There is no record yet: `python -m benchmarks.measure.private_curves --record`.\n"


def section() -> str:
    """Return introduction, pictures and tables."""
    record = read_newest("private-curves", "cpu")
    return MISSING if record is None else describe(record)


def pictures() -> dict[str, Chart]:
    """Return the pictures by name, if the record is there."""
    record = read_newest("private-curves", "cpu")
    subjects = {} if record is None else record["subjects"]
    return {f"curve-{name}": draw(subject) for name, subject in subjects.items()}


def describe(record: Mapping[str, Any]) -> str:
    """Return introduction, pictures and tables of a record."""
    parts = [_introduce(record)]
    for name, subject in record["subjects"].items():
        title = subject["title"]
        parts += [
            f"### {title[0].upper()}{title[1:]}\n",
            f"![Accuracy by epsilon, {title}](privacy/curve-{name}.svg)\n",
        ]
        parts += [_scores_table(subject), _chosen_table(subject)]
    return "\n".join(parts)


def _introduce(record: Mapping[str, Any]) -> str:
    return (
        f"`privacy.unit=sample`, delta {record['delta']:g}, four clients that all work in every round "
        f"({record['device']}). At each epsilon each algorithm has its own learning rate and clip, chosen with the "
        "same epsilon on held-out training data, from grids that grow while their best is at an end; this tuning "
        "spends privacy that these epsilons do not count. Then it runs with five other seeds. Accuracy on the test set "
        "in percent, mean over seeds ± half of its 95% interval; differences are paired by seed, in points, with their "
        "95% interval. *none* is without differential privacy. Written by "
        "`python -m benchmarks.measure.private_curves`.\n"
    )


def _scores_table(subject: Mapping[str, Any]) -> str:
    lines = _head(HEADS)
    for epsilon, cells in _by_epsilon(subject).items():
        paired = {pair["base"]: _difference(pair) for pair in subject["paired"] if pair["epsilon"] == epsilon}
        row = [_name(epsilon), *(_score(cells[name]) for name in NAMES), paired["local-adamw"], paired["fedavg"]]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _chosen_table(subject: Mapping[str, Any]) -> str:
    lines = _head(CHOSEN_HEADS)
    for epsilon, cells in _by_epsilon(subject).items():
        row = [_name(epsilon), *(_choice(cells[name]) for name in NAMES)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _head(heads: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"| ---: |{' ---: |' * (len(heads) - 1)}"]


def _by_epsilon(subject: Mapping[str, Any]) -> dict[float | None, dict[str, Any]]:
    """Return the points by epsilon, the smallest first and none last, and by algorithm."""
    found: dict[float | None, dict[str, Any]] = {}
    for cell in sorted(subject["cells"], key=lambda cell: (cell["epsilon"] is None, cell["epsilon"] or 0.0)):
        found.setdefault(cell["epsilon"], {})[cell["algorithm"]] = cell
    return found


def _name(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"


def _scores(cell: Mapping[str, Any]) -> list[float]:
    return [run["score"] for run in cell["runs"] if run["score"] is not None]


def _score(cell: Mapping[str, Any]) -> str:
    scores = _scores(cell)
    if not scores:
        return "diverged"
    interval = mean_interval(scores)
    diverged = len(cell["runs"]) - len(scores)
    half = "" if interval is None else f" ± {(interval.high - interval.low) / 2:.1f}"
    return f"{mean(scores):.1f}{half}" + (f" ({diverged} diverged)" if diverged else "")


def _choice(cell: Mapping[str, Any]) -> str:
    if cell["lr"] is None:
        return "-"
    return f"{cell['lr']:.3g}, {'-' if cell['clip'] is None else format(cell['clip'], 'g')}"


def _difference(pair: Mapping[str, Any]) -> str:
    if "n" not in pair:
        return "-"
    paired = Paired(**{key: pair[key] for key in Paired._fields})
    return f"{paired.difference:+.1f} ({paired.low:+.1f} to {paired.high:+.1f}): {paired.verdict}"


def draw(subject: Mapping[str, Any]) -> Chart:
    """Return mean scores and their intervals by epsilon, a line for each algorithm."""
    rows: list[dict[str, object]] = []
    for epsilon, cells in _by_epsilon(subject).items():
        for name, cell in cells.items():
            if scores := _scores(cell):
                interval = mean_interval(scores)
                span = {} if interval is None else {"low": interval.low / 100, "high": interval.high / 100}
                rows.append({"epsilon": _name(epsilon), "of": NAMES[name], "score": mean(scores) / 100, **span})
    order, names = [_name(epsilon) for epsilon in _by_epsilon(subject)], list(NAMES.values())
    axis = alt.X("epsilon:N", sort=order, title="epsilon", axis=alt.Axis(labelAngle=0))
    color = alt.Color(
        "of:N", title=None, sort=names, scale=alt.Scale(domain=names, range=list(COLORS[: len(names)])),
        legend=alt.Legend(orient="bottom", symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1),
    )  # fmt: skip
    base = alt.Chart(alt.Data(values=rows), title=f"Accuracy, {subject['title']}").encode(
        x=axis, xOffset=alt.XOffset("of:N", sort=names, scale=alt.Scale(paddingOuter=1)), color=color
    )
    percent = alt.Axis(format="%")
    bars = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title=None, axis=percent, scale=alt.Scale(zero=False)), y2="high:Q"
    )
    points = base.mark_circle(size=60, opacity=1).encode(y=alt.Y("score:Q", title=None, axis=percent))
    line = base.mark_line(strokeWidth=1.5, opacity=0.6).encode(y=alt.Y("score:Q", title=None, axis=percent))
    return alt.layer(line, bars, points).properties(width=420, height=260)
