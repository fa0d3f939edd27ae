"""How a study's points are drawn: lines with bands and seeds, values of a setting, final scores, kinds of blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from fedadamw.report.run_charts import Chart, Width, rounds_axis
from fedadamw.report.study_files import Row
from fedadamw.report.study_rows import LOGARITHMIC, value_domain

Symbol = dict[str, str | int]  # how a legend draws its symbols

COLORS = (
    "#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2",
    "#ca8a04", "#db2777", "#475569", "#65a30d", "#7c2d12", "#0f766e",
)  # fmt: skip
AXES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "round": "round",
    "sent": "MB sent up by all clients",
    "virtual": "virtual time",
    "v_variance": "variance of v",
    "v_dispersion": "spread of v",
    "v_over_rounds": "standard deviation over mean",
    "drift": "distance",
    "cosine": "cosine",
    "update_norm": "norm",
}
LOG_SCALE_RATIO = 3.5  # of the bytes that two variants send, from which the axis is logarithmic
STROKES: Symbol = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 3}
OF_MEANS, OF_SEEDS, OF_INTERVALS = "!isValid(datum.seed)", "isValid(datum.seed)", "isValid(datum.low)"


class Size(NamedTuple):
    """Width and height of a chart's plot."""

    width: Width = "container"
    height: int = 280


def line_chart(
    rows: Sequence[Row],
    x: str,
    y: str,
    names: Sequence[str],
    *,
    title: str,
    limits: tuple[float, float],
    size: Size,
    x_title: str = "",
) -> Chart:
    """Return a line for each variant through its means, on bands of their intervals, with the seeds' points.

    rows: as study_rows.rows_of_point makes them. title: of the y axis. limits: the least and greatest possible y.
    x_title: of the x axis, by default as AXES has it.
    """
    selected = alt.selection_point(name=f"picked_{x}_{y}", fields=["variant"], bind="legend")
    base = alt.Chart(alt.Data(values=list(rows))).encode(x=_x_axis(rows, x, x_title), color=_color(names, STROKES))
    axis = _axis(rows, y, title, limits)
    values = alt.Y(f"{y}:Q", **axis)
    band = base.mark_area(clip=True).encode(
        y=alt.Y("low:Q", **axis),
        y2="high:Q",
        opacity=alt.condition(selected, alt.value(min(0.12, 0.5 / len(names))), alt.value(0.0)),
    )
    line = base.mark_line(strokeWidth=2).encode(
        y=values, opacity=_shown(selected, 1.0), strokeDash=_dash(names, STROKES)
    )
    seeds = base.mark_circle(size=14).encode(y=values, opacity=_shown(selected, 0.5))
    points = base.mark_circle(size=36).encode(y=values, opacity=_shown(selected, 1.0), tooltip=_hover(rows, y, title))
    layers = [band.transform_filter(OF_INTERVALS), line.transform_filter(OF_MEANS)]
    layers += [seeds.transform_filter(OF_SEEDS), points.transform_filter(OF_MEANS).add_params(selected)]
    return alt.layer(*layers).properties(width=size.width, height=size.height)


def _shown(selected: alt.Parameter, opacity: float) -> object:
    return alt.condition(selected, alt.value(opacity), alt.value(0.1))


def _x_axis(rows: Sequence[Row], x: str, title: str) -> alt.X:
    if x == "round":
        return alt.X(
            "round:Q", title="round", axis=rounds_axis(row["round"] for row in rows), scale=alt.Scale(nice=False)
        )
    return alt.X(f"{x}:Q", title=title or AXES[x], scale=alt.Scale(type=_axis_type(rows, x), nice=False))


def _axis(rows: Sequence[Row], y: str, title: str, limits: tuple[float, float]) -> dict[str, object]:
    """Return title, axis and scale of the values, which is as high as the values and not as their bands."""
    form = alt.Axis(format="%" if y == "score" else "~g")
    if y in LOGARITHMIC:
        return {"title": title, "axis": form, "scale": alt.Scale(type="log")}
    domain = value_domain(rows, y, limits)
    scale = alt.Scale(zero=False) if domain is None else alt.Scale(domain=list(domain), nice=True)
    return {"title": title, "axis": form, "scale": scale}


def _hover(rows: Sequence[Row], y: str, title: str) -> list[alt.Tooltip]:
    """Return what hovering over a mean shows."""
    hover = [alt.Tooltip("variant:N", title=" ")]
    if any("round" in row for row in rows):
        hover.append(alt.Tooltip("round:Q"))
    hover.append(alt.Tooltip(f"{y}:Q", format=".2%" if y == "score" else ".4g", title=title))
    if any("interval" in row for row in rows):
        hover.append(alt.Tooltip("interval:N", title="95% interval"))
    if any("virtual" in row for row in rows):
        hover.append(alt.Tooltip("virtual:Q", format=",.3~f", title="virtual time"))
    if any("sent" in row for row in rows):
        hover.append(alt.Tooltip("sent:Q", format=",.1f", title="MB sent up"))
    return hover


def _axis_type(rows: Sequence[Row], x: str) -> str:
    """Return `log` for bytes if one variant sends many times those of another, else `linear`."""
    totals: dict[str, float] = {}
    for row in rows if x == "sent" else ():
        variant = str(row["variant"])
        totals[variant] = max(float(row[x]), totals.get(variant, 0.0))
    return "log" if totals and max(totals.values()) > LOG_SCALE_RATIO * min(totals.values()) > 0 else "linear"


def interval_chart(rows: Sequence[Row], *, along: alt.X, title: str, limits: tuple[float, float], size: Size) -> Chart:
    """Return the mean score at each value of a setting, with its interval and the seeds' points."""
    base = alt.Chart(alt.Data(values=list(rows))).encode(x=along)
    axis = _axis(rows, "score", title, limits)
    y, low = alt.Y("score:Q", **axis), alt.Y("low:Q", **axis)
    hover = _hover(rows, "score", title)
    line = base.mark_line(color=COLORS[0], point=alt.OverlayMarkDef(size=60)).encode(y=y, tooltip=hover)
    bar = base.mark_rule(color=COLORS[0], strokeWidth=2, clip=True).encode(y=low, y2="high:Q")
    seeds = base.mark_circle(color=COLORS[1], size=22, opacity=0.7).encode(y=y)
    layers = (bar.transform_filter(OF_INTERVALS), line.transform_filter(OF_MEANS), seeds.transform_filter(OF_SEEDS))
    return alt.layer(*layers).properties(width=size.width, height=size.height)


def final_chart(
    rows: Sequence[Row],
    names: Sequence[str],
    *,
    order: Sequence[str],
    title: str,
    limits: tuple[float, float],
    size: Size,
) -> Chart:
    """Return each variant's mean score with its interval and the seeds' points, one row a variant, in `order`.

    names: all variants, as in `line_chart`, so that they have the same colors.
    """
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("variant:N", title=None, sort=list(order), axis=alt.Axis(labelLimit=150)), color=_color(names, None)
    )
    axis = _axis(rows, "score", title, limits)
    x, low = alt.X("score:Q", **axis), alt.X("low:Q", **axis)
    bar = base.mark_rule(strokeWidth=2, clip=True).encode(x=low, x2="high:Q")
    seeds = base.mark_circle(size=26, opacity=0.45).encode(x=x)
    means = base.mark_point(size=70, filled=True, shape="diamond").encode(x=x, tooltip=_hover(rows, "score", title))
    layers = (bar.transform_filter(OF_INTERVALS), seeds.transform_filter(OF_SEEDS), means.transform_filter(OF_MEANS))
    return alt.layer(*layers).properties(width=size.width, height=max(30 * len({row["variant"] for row in rows}), 80))


def kind_chart(rows: Sequence[Row], what: str, names: Sequence[str], *, size: Size) -> Chart:
    """Return `what` for each kind of block, as a point for each variant."""
    scale = alt.Scale(type="log") if what in LOGARITHMIC else alt.Scale()
    return (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_circle(size=90, opacity=0.9)
        .encode(
            x=alt.X(f"{what}:Q", title=AXES[what], scale=scale, axis=alt.Axis(format="~g")),
            y=alt.Y("kind:N", title=None),
            color=_color(names, {}),
            tooltip=["variant:N", "kind:N", alt.Tooltip(f"{what}:Q", format=".3g")],
        )
        .properties(width=size.width, height=26 * len({row["kind"] for row in rows}))
    )


def _color(names: Sequence[str], symbol: Symbol | None) -> alt.Color:
    """Return a color for each variant; colors repeat after the last, with dashed lines. None: without a legend."""
    scale = alt.Scale(domain=list(names), range=[COLORS[i % len(COLORS)] for i in range(len(names))])
    legend = None if symbol is None else _legend(symbol)
    return alt.Color("variant:N", title=None, sort=list(names), scale=scale, legend=legend)


def _dash(names: Sequence[str], symbol: Symbol) -> alt.StrokeDash:
    """Return solid lines for the variants up to the last color, dashed lines for the others."""
    scale = alt.Scale(domain=list(names), range=[[1, 0] if i < len(COLORS) else [5, 3] for i in range(len(names))])
    return alt.StrokeDash("variant:N", title=None, sort=list(names), scale=scale, legend=_legend(symbol))


def _legend(symbol: Symbol) -> alt.Legend:
    """Return a legend below the chart, the same for colors and dashes, so that Vega-Lite merges the two."""
    return alt.Legend(orient="bottom", columns=3, labelLimit=240, **symbol)
