"""Charts of a study: mean curves with a standard deviation band over seeds, a setting's values, diagnostics."""

import statistics
from collections.abc import Iterable, Sequence
from math import inf
from typing import Literal

import altair as alt

from fedadamw.report.metrics import label, value_range
from fedadamw.report.run_charts import Chart, Width
from fedadamw.report.study_files import Results, Row, RunResult

Curve = Literal["score", "train_loss", "test_loss"]
Symbol = dict[str, str | int]  # how a legend draws its symbols

COLORS = (
    "#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2",
    "#ca8a04", "#db2777", "#475569", "#65a30d", "#7c2d12", "#0f766e",
)  # fmt: skip


def overview_chart(results: Results) -> Chart:
    """Return the score by round and, beside it, by the one varied numeric setting, or by bytes sent."""
    left = curve_chart(results, "score", by="round", width=420, height=280)
    setting = varied_setting(results)
    if setting is None:
        return alt.hconcat(left, curve_chart(results, "score", by="sent", width=420, height=280), spacing=32)
    return alt.hconcat(left, setting_chart(results, setting, width=420, height=280), spacing=32)


def score_label(results: Results) -> str:
    """Return the name of the study's metric."""
    return label(results["metric"] or "score")


def varied_setting(results: Results) -> str | None:
    """Return the numeric setting in which the variants differ; None if they differ in anything else."""
    labels = [{k: v for k, v in s["label"].items() if k != "algorithm"} for s in results["summary"]]
    names = {name for label in labels for name in label}
    algorithms = {s["label"].get("algorithm") for s in results["summary"]}
    if len(names) != 1 or len(algorithms) != 1 or len(labels) < 2:
        return None
    (name,) = names
    return name if all(is_number(label.get(name, "")) for label in labels) else None


def is_number(text: str) -> bool:
    """Whether `text` is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def setting_chart(results: Results, setting: str, *, width: Width = "container", height: int = 280) -> Chart:
    """Return the final score by the value of `setting`, with a bar of one standard deviation either side."""
    rows = [
        {
            "value": s["label"][setting],
            "score": s["score"],
            **_band(s["score"], s["score_sd"] or 0.0, value_range(results["metric"])),
        }
        for s in results["summary"]
        if s["score"] is not None
    ]
    order = sorted((s["label"][setting] for s in results["summary"]), key=float)
    x = alt.X("value:O", sort=order, title=setting.rpartition(".")[2], axis=alt.Axis(labelAngle=0))
    form, scale = alt.Axis(format="%"), alt.Scale(zero=False)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x)
    hover = ["value:N", alt.Tooltip("score:Q", format=".2%", title=score_label(results))]
    title = f"test {score_label(results)} after the last round"
    line = base.mark_line(color=COLORS[0], point=alt.OverlayMarkDef(size=60)).encode(
        y=alt.Y("score:Q", title=title, axis=form, scale=scale), tooltip=hover
    )
    bar = base.mark_rule(color=COLORS[0], strokeWidth=2).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    return (bar + line).properties(width=width, height=height)


def all_charts(results: Results) -> dict[str, tuple[str, Chart]]:
    """Return every chart that the results have numbers for: element id -> (heading, chart)."""
    name = score_label(results)
    charts: dict[str, tuple[str, Chart]] = {
        "score": (f"Test {name} by round", curve_chart(results, "score", by="round")),
        "bytes": (f"Test {name} by bytes sent", curve_chart(results, "score", by="sent")),
        "train": ("Clients' training loss", curve_chart(results, "train_loss", by="round")),
        "test": ("Test loss", curve_chart(results, "test_loss", by="round")),
    }
    setting = varied_setting(results)
    if setting is not None:
        charts["value"] = (f"Test {name} by {setting}", setting_chart(results, setting))
    for key, heading in DIAGNOSTICS.items():
        rows = diagnostic_rows(results, key)
        if rows:
            charts[key] = (heading, line_chart(rows, "round", key, variant_names(results), title=AXES[key]))
    for key, heading in BY_KIND.items():
        rows = kind_rows(results, key)
        if rows:
            charts[f"{key}-kinds"] = (heading, kind_chart(rows, key, variant_names(results)))
    return charts


DIAGNOSTICS = {
    "v_dispersion": "Spread of v across clients: root of its mean variance over its mean",
    "v_variance": "Variance of v across clients, mean over coordinates",
    "drift": "Client drift: mean distance of the clients' models from their mean",
    "cosine": "Cosine of the clients' updates with the last global direction",
    "update_norm": "Norm of the clients' updates",
}
BY_KIND = {
    "v_variance": "Variance of v across clients by class of block, mean over rounds",
    "update_norm": "Norm of the clients' updates by class of block, mean over rounds",
}
AXES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "round": "round",
    "sent": "MB sent up by all clients",
    "v_variance": "variance of v",
    "v_dispersion": "spread of v",
    "drift": "distance",
    "cosine": "cosine",
    "update_norm": "norm",
}
LOGARITHMIC = {"v_variance"}
LOG_SCALE_RATIO = 3.5  # of the bytes that two variants send, from which the axis is logarithmic
STROKES: Symbol = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 3}


def curve_chart(results: Results, what: Curve, *, by: str, width: Width = "container", height: int = 280) -> Chart:
    """Return the mean of `what` over seeds, by `round` or megabytes `sent`, with a band of one standard deviation."""
    limits = value_range(results["metric"]) if what == "score" else (0.0, inf)
    groups = runs_by_variant(results["runs"]).items()
    rows = [row for variant, group in groups for row in _curve_rows(variant, group, what, limits)]
    title = f"test {score_label(results)}" if what == "score" else AXES[what]
    return line_chart(rows, by, what, variant_names(results), title=title, width=width, height=height)


def line_chart(
    rows: Sequence[Row],
    x: str,
    y: str,
    names: Sequence[str],
    *,
    title: str,
    width: Width = "container",
    height: int = 280,
) -> Chart:
    """Return a line for each variant through `rows` with x, y, and the band's low and high. title: of the y axis."""
    form = "%" if y == "score" else "~g"
    scale = alt.Scale(type="log") if y in LOGARITHMIC else alt.Scale(zero=False)
    selected = alt.selection_point(name=f"picked_{x}_{y}", fields=["variant"], bind="legend")
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X(f"{x}:Q", title=AXES[x], scale=alt.Scale(type=_axis_type(rows, x), nice=False)),
        color=_color(names, STROKES),
    )
    shown = alt.condition(selected, alt.value(1.0), alt.value(0.1))
    hover = [
        alt.Tooltip("variant:N", title=" "),
        alt.Tooltip("round:Q"),
        alt.Tooltip(f"{y}:Q", format=".2%" if y == "score" else ".4g", title=title),
    ]
    if any(row["sd"] for row in rows):
        hover.append(alt.Tooltip("sd:Q", format=".2%" if y == "score" else ".3g", title="sd over seeds"))
    if all("sent" in row for row in rows):
        hover.append(alt.Tooltip("sent:Q", format=",.1f", title="MB sent up"))
    values = alt.Y(f"{y}:Q", title=title, axis=alt.Axis(format=form), scale=scale)
    band = base.mark_area(opacity=0.12).encode(
        y=alt.Y("low:Q", title=title, axis=alt.Axis(format=form), scale=scale),
        y2="high:Q",
        opacity=alt.condition(selected, alt.value(0.12), alt.value(0.0)),
    )
    line = base.mark_line(strokeWidth=2).encode(y=values, opacity=shown, strokeDash=_dash(names, STROKES))
    points = base.mark_circle(size=36).encode(y=values, opacity=shown, tooltip=hover).add_params(selected)
    return (band + line + points).properties(width=width, height=height)


def _axis_type(rows: Sequence[Row], x: str) -> str:
    """Return `log` for bytes if one variant sends many times those of another, else `linear`."""
    totals: dict[str, float] = {}
    for row in rows if x == "sent" else ():
        variant = str(row["variant"])
        totals[variant] = max(float(row[x]), totals.get(variant, 0.0))
    return "log" if totals and max(totals.values()) > LOG_SCALE_RATIO * min(totals.values()) > 0 else "linear"


def kind_chart(rows: Sequence[Row], what: str, names: Sequence[str]) -> Chart:
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
        .properties(width="container", height=26 * len({row["kind"] for row in rows}))
    )


def _color(names: Sequence[str], symbol: Symbol) -> alt.Color:
    """Return a color for each variant; colors repeat after the last, with dashed lines."""
    scale = alt.Scale(domain=list(names), range=[COLORS[i % len(COLORS)] for i in range(len(names))])
    return alt.Color("variant:N", title=None, sort=list(names), scale=scale, legend=_legend(symbol))


def _dash(names: Sequence[str], symbol: Symbol) -> alt.StrokeDash:
    """Return solid lines for the variants up to the last color, dashed lines for the others."""
    scale = alt.Scale(domain=list(names), range=[[1, 0] if i < len(COLORS) else [5, 3] for i in range(len(names))])
    return alt.StrokeDash("variant:N", title=None, sort=list(names), scale=scale, legend=_legend(symbol))


def _legend(symbol: Symbol) -> alt.Legend:
    """Return a legend below the chart, the same for colors and dashes, so that Vega-Lite merges the two."""
    return alt.Legend(orient="bottom", columns=3, labelLimit=240, **symbol)


def runs_by_variant(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Return the runs of each variant, one per seed, in their order."""
    groups: dict[str, list[RunResult]] = {}
    for result in runs:
        groups.setdefault(result["variant"], []).append(result)
    return groups


def variant_names(results: Results) -> list[str]:
    """Return the variants with results, in the order of the study."""
    return list(runs_by_variant(results["runs"]))


def _curve_rows(variant: str, group: Sequence[RunResult], what: Curve, limits: tuple[float, float]) -> Iterable[Row]:
    first = group[0]
    for i, round_ in enumerate(first["round"]):
        values = [value for r in group if (value := r[what][i]) is not None]
        yield from _curve_point(variant, round_, first["sent_bytes"][i], what, values, limits)


def diagnostic_rows(results: Results, key: str) -> list[Row]:
    """Return one diagnostic by round, its mean over the seeds that have it."""
    return [
        row
        for variant, group in runs_by_variant(results["runs"]).items()
        for i in range(min(len(r["diagnostics"]) for r in group))
        for row in _curve_point(
            variant,
            group[0]["diagnostics"][i]["round"],
            None,
            key,
            [r["diagnostics"][i][key] for r in group if r["diagnostics"][i].get(key) is not None],
            (-1.0, 1.0) if key == "cosine" else (0.0, inf),
        )
    ]


def kind_rows(results: Results, key: str) -> list[Row]:
    """Return one diagnostic by kind of block, its mean over rounds and seeds."""
    rows: list[Row] = []
    for variant, group in runs_by_variant(results["runs"]).items():
        values: dict[str, list[float]] = {}
        for record in (record for result in group for record in result["diagnostics"]):
            for kind, value in (record.get(f"{key}_by_kind") or {}).items():
                if value is not None:
                    values.setdefault(kind, []).append(value)
        rows += [{"variant": variant, "kind": kind, key: statistics.mean(v)} for kind, v in values.items()]
    return rows


def _curve_point(
    variant: str, round_: int, sent: int | None, what: str, values: Sequence[float], limits: tuple[float, float]
) -> Iterable[Row]:
    """Yield a point of a curve with its band, if any seed has a value."""
    if values:
        mean = statistics.mean(values)
        sd = statistics.stdev(values) if len(values) > 1 else 0.0
        if what in LOGARITHMIC:
            limits = (min(values) / 2, inf)
        row: Row = {"variant": variant, "round": round_, what: mean, "sd": sd, **_band(mean, sd, limits)}
        yield row if sent is None else {**row, "sent": sent / 1e6}


def _band(mean: float, sd: float, limits: tuple[float, float]) -> dict[str, float]:
    """Return one standard deviation either side of the mean, cut at the limits."""
    least, greatest = limits
    return {"low": max(mean - sd, least), "high": min(mean + sd, greatest)}
