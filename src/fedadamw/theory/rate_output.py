"""Shows measured rates: a table, a figure of three panels against the line P."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import altair as alt

from fedadamw.io.escaping import escape_text
from fedadamw.report.run_charts import Chart
from fedadamw.report.study_marks import COLORS
from fedadamw.theory.prediction import Quadratic, predict
from fedadamw.theory.rate import AXES, Grid, Rate, Slope, along

HEADINGS = ("algorithm", *(f"slope in {letter}" for letter in AXES.values()), "measured/P")
TITLES = {"clients": "S, clients in a round", "steps": "K, local steps", "rounds": "R, rounds"}
LINE = "P, theory"
NOISE_NAMES = {"gauss": "Gaussian noise", "skew": "Skewed noise"}
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")  # of points
LEGEND = alt.Legend(
    orient="bottom",
    columns=3,
    columnPadding=32,
    labelLimit=260,
    symbolStrokeWidth=2,
    symbolSize=90,
    symbolOpacity=1,
)


def rate_rows(rate: Rate) -> list[list[str]]:
    """Return the table's cells under HEADINGS, a row for each algorithm."""
    rows = []
    for name in dict.fromkeys(point["algorithm"] for point in rate["points"]):
        slopes = {s["axis"]: s for s in rate["slopes"] if s["algorithm"] == name}
        ratios = [point["ratio"] for point in rate["points"] if point["algorithm"] == name]
        cells = [_describe(slopes[axis]) for axis in AXES]
        rows.append([name, *cells, f"{min(ratios):.2f} to {max(ratios):.2f}"])
    return rows


def _describe(slope: Slope) -> str:
    error = slope["error"]
    return f"{slope['slope']:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def rate_chart(rate: Rate) -> Chart:
    """Return three panels, one an axis: measured by algorithm, with the seeds' range, and the line P."""
    names = list(dict.fromkeys(point["algorithm"] for point in rate["points"]))
    panels, center = [_panel(rate, names, axis) for axis in AXES], Grid(**rate["axes"]).center
    text = alt.TitleParams(
        f"{NOISE_NAMES[rate['noise']]}; S={center.clients}, K={center.steps}, R={center.rounds} where they are not "
        "varied; bars: the seeds",
        fontSize=11,
        fontWeight="normal",
        color="#374151",
    )
    return alt.hconcat(*panels, spacing=24, title=text).resolve_scale(y="shared", color="shared", shape="shared")


def _panel(rate: Rate, names: Sequence[str], axis: str) -> Chart:
    measured: list[dict[str, Any]] = [
        {
            "x": dict(point)[axis],
            "y": point["measured"],
            "low": min(point["seeds"]),
            "high": max(point["seeds"]),
            "of": escape_text(name),
        }
        for name in names
        for point in along(rate["points"], name, Grid(**rate["axes"]), axis)
    ]
    values = rate["axes"][axis]
    x = alt.X("x:Q", title=TITLES[axis], scale=alt.Scale(type="log", nice=False, padding=12), axis=_ticks(values))
    y_title = "mean |grad f|²" if axis == next(iter(AXES)) else None
    y = alt.Y("y:Q", title=y_title, scale=alt.Scale(type="log", nice=False, padding=8), axis=alt.Axis(format="~g"))
    shown = [escape_text(name) for name in names]
    color = alt.Color(
        "of:N",
        title=None,
        scale=alt.Scale(domain=[*shown, LINE], range=[*islice(cycle(COLORS), len(names)), "#111827"]),
        legend=LEGEND,
    )
    base = alt.Chart(alt.Data(values=measured)).encode(x=x, color=color)
    shapes = alt.Scale(domain=[*shown, LINE], range=[*islice(cycle(SHAPES), len(names)), "stroke"])
    shape = alt.Shape("of:N", title=None, scale=shapes, legend=LEGEND)
    line = alt.Chart(alt.Data(values=_line(rate, axis))).mark_line(strokeDash=[6, 4], strokeWidth=1.5)
    layers = (
        line.encode(x=x, y=y, color=color),
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y),
        base.mark_point(size=80, strokeWidth=1.5, opacity=1).encode(y=y, shape=shape),  # hollow, to see what is below
    )
    return alt.layer(*layers).properties(width=230, height=230)


def _ticks(values: Sequence[int]) -> alt.Axis:
    return alt.Axis(values=list(values), format="d", grid=False)


def _line(rate: Rate, axis: str) -> list[dict[str, object]]:
    """P along an axis, with the momentum of the first algorithm."""
    problem, points = Quadratic(**rate["problem"]), Grid(**rate["axes"]).along(axis)
    return [{"x": getattr(p, axis), "y": predict(problem, p, rate["beta1"]), "of": LINE} for p in points]
