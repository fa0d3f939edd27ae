"""Charts of simulated devices by round: how jobs ended, how stale updates were, who did the work, who waited."""

from collections.abc import Iterable, Mapping
from typing import Any

import altair as alt
import numpy as np

from fedadamw.report.jobs import OUTCOMES
from fedadamw.report.run_charts import BLUE, GREEN, ORANGE, Chart, Records, Width, name_rounds, rounds_axis
from fedadamw.report.study_marks import COLORS

OUTCOME_COLORS = dict(zip(OUTCOMES, (BLUE, "#dc2626", ORANGE, "#9333ea", "#94a3b8", "#ca8a04"), strict=True))


def round_charts(records: Records, shares: Mapping[str, float], **size: int) -> dict[str, tuple[str, Chart]]:
    """Return the charts that the records have numbers for: name -> (heading, chart); none without a virtual clock.

    shares: of the devices that each class has, see work_chart.
    """
    numbers = _numbers(records)
    if not numbers:
        return {}
    rounds = name_rounds(records)
    charts: dict[str, tuple[str, Chart]] = {}
    if rounds == "version":
        charts["staleness"] = ("Staleness by version", staleness_chart(records, **size))
    charts["idle"] = (f"Idle devices by {rounds}", idle_chart(records, **size))
    if len({name for of_round in numbers.values() for name in of_round["work"]}) > 1:
        charts["work"] = (f"Work by class of devices by {rounds}", work_chart(records, shares, **size))
    charts["jobs"] = (f"Ends of jobs by {rounds}", jobs_chart(records, **size))
    return charts


def staleness_chart(records: Records, *, width: Width = "container", height: int = 200) -> Chart:
    """Return the mean and the largest staleness of the updates in each version."""
    rows = [
        {"round": round_, "mean": numbers["staleness_mean"], "largest": numbers["staleness_max"]}
        for round_, numbers in _numbers(records).items()
        if numbers.get("staleness_mean") is not None
    ]
    title = alt.TitleParams("Staleness of updates", subtitle="versions made since an update's model")
    base = _by_round(records, rows, title)
    scale = alt.Scale(domain=["mean", "largest"], range=[BLUE, ORANGE])
    color = alt.Color("of:N", title=None, scale=scale, legend=_legend("stroke", 3))

    def values(name: str) -> dict[str, object]:
        axis = alt.Axis(tickMinStep=1, format="~r")
        return {"y": alt.Y(f"{name}:Q", title=None, axis=axis, scale=alt.Scale(zero=True)), "color": color}

    def named(name: str) -> alt.Chart:
        return base.transform_calculate(of=f"'{name}'")

    hover = [alt.Tooltip("round:Q", title="version"), alt.Tooltip("mean:Q", format=".3~g"), alt.Tooltip("largest:Q")]
    step = named("largest").mark_line(interpolate="step", strokeWidth=1, opacity=0.8).encode(**values("largest"))
    line = named("mean").mark_line(strokeWidth=2.5).encode(**values("mean"))
    points = named("mean").mark_circle(size=16, opacity=1).encode(**values("mean"), tooltip=hover)
    return (step + line + points).properties(width=width, height=height)


def idle_chart(records: Records, *, width: Width = "container", height: int = 200) -> Chart:
    """Return by round the share of their time in which devices that were at work waited for others."""
    rows = [{"round": round_, "idle": numbers["idle"]} for round_, numbers in _numbers(records).items()]
    title = alt.TitleParams("Idle share", subtitle="of the time of the devices that were asked")
    base = _by_round(records, rows, title).encode(
        y=alt.Y("idle:Q", title=None, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    )
    area = base.mark_area(color=GREEN, opacity=0.2) + base.mark_line(color=GREEN, strokeWidth=2)
    hover = [alt.Tooltip("round:Q", title=name_rounds(records)), alt.Tooltip("idle:Q", format=".1%")]
    points = base.mark_circle(color=GREEN, size=14).encode(tooltip=hover)
    return (area + points).properties(width=width, height=height)


def work_chart(
    records: Records, shares: Mapping[str, float], *, width: Width = "container", height: int = 200
) -> Chart:
    """Return by round how the local steps that counted so far are shared between the classes of devices.

    shares: of the devices that each class has; {} if they are not known.
    """
    numbers = _numbers(records)
    names = list(dict.fromkeys(name for of_round in numbers.values() for name in of_round["work"]))
    sums = np.cumsum([[of_round["work"].get(name, 0) for name in names] for of_round in numbers.values()], axis=0)
    done = sums.sum(axis=1, keepdims=True)
    highs = np.cumsum(sums / np.maximum(done, 1), axis=1)  # (rounds, classes)
    rows = [
        {
            "round": round_,
            "of": name,
            "steps": int(sums[i, k]),
            "low": highs[i, k - 1] if k else 0.0,
            "high": highs[i, k],
        }
        for i, round_ in enumerate(numbers)
        for k, name in enumerate(names)
        if done[i, 0]
    ]
    known = shares.keys() == set(names)
    below = ["share of the local steps that counted so far", *(["dashed: shares of the devices"] if known else [])]
    base = _by_round(records, rows, alt.TitleParams("Work by class of devices", subtitle=below))
    colors = alt.Scale(domain=names, range=[COLORS[i % len(COLORS)] for i in range(len(names))])
    y = alt.Y("low:Q", title=None, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    base = base.transform_calculate(share="datum.high - datum.low")
    drawn = base.mark_area(opacity=0.75) if len(numbers) > 1 else base.mark_bar(opacity=0.75, width=24)
    color = alt.Color("of:N", title=None, sort=names, scale=colors, legend=_legend("square", 0))
    chart: Chart = drawn.encode(y=y, y2="high:Q", color=color, tooltip=_describe_work(records))
    if known:
        ends = [{"low": float(end)} for end in np.cumsum([shares[name] for name in names])[:-1]]
        lines = alt.Chart(alt.Data(values=ends)).mark_rule(color="white", strokeDash=[5, 3], strokeWidth=1.5)
        chart = chart + lines.encode(y=y)
    return chart.properties(width=width, height=height)


def _describe_work(records: Records) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("round:Q", title=name_rounds(records)),
        alt.Tooltip("of:N", title="class"),
        alt.Tooltip("share:Q", format=".1%"),
        alt.Tooltip("steps:Q", title="local steps", format=",d"),
    ]


def jobs_chart(records: Records, *, width: Width = "container", height: int = 200) -> Chart:
    """Return by round how many jobs ended, and how."""
    rows: list[dict[str, Any]] = []
    for round_, numbers in _numbers(records).items():
        high = 0
        for outcome in OUTCOMES:
            if jobs := numbers.get(outcome):
                place = {"begin": round_ - 0.5, "end": round_ + 0.5, "low": high, "high": high + jobs}
                rows.append({"round": round_, "of": outcome, "jobs": jobs, **place})
                high += jobs
    rounds = name_rounds(records)
    base = _by_round(records, rows, alt.TitleParams("Ends of jobs", subtitle=f"jobs that ended in each {rounds}"))
    domain = [records[0]["round"] - 0.5, records[-1]["round"] + 0.5]
    return (
        base.mark_bar()
        .encode(
            x=alt.X("begin:Q", title=rounds, axis=_axis(records), scale=alt.Scale(domain=domain, nice=False)),
            x2="end:Q",
            y=alt.Y("low:Q", title=None, axis=alt.Axis(tickMinStep=1, format="d")),
            y2="high:Q",
            color=color_outcomes(outcome for outcome in OUTCOMES if any(row["of"] == outcome for row in rows)),
            tooltip=[alt.Tooltip("round:Q", title=rounds), alt.Tooltip("of:N", title="outcome"), "jobs:Q"],
        )
        .properties(width=width, height=height)
    )


def color_outcomes(outcomes: Iterable[str]) -> alt.Color:
    """Return the colors of these outcomes of jobs, in the field `of`."""
    domain = list(outcomes)
    scale = alt.Scale(domain=domain, range=[OUTCOME_COLORS[outcome] for outcome in domain])
    return alt.Color("of:N", title=None, scale=scale, legend=_legend("square", 0))


def _legend(symbol: str, stroke: int) -> alt.Legend:
    return alt.Legend(orient="bottom", columns=6, symbolType=symbol, symbolStrokeWidth=stroke, symbolOpacity=1)


def _by_round(records: Records, rows: list[dict[str, Any]], title: alt.TitleParams) -> alt.Chart:
    x = alt.X("round:Q", title=name_rounds(records), axis=_axis(records), scale=alt.Scale(nice=False, zero=False))
    return alt.Chart(alt.Data(values=rows), title=title).encode(x=x)


def _axis(records: Records) -> alt.Axis:
    return rounds_axis(record["round"] for record in records)


def _numbers(records: Records) -> dict[int, Mapping[str, Any]]:
    """Return the numbers of devices by round, of the rounds that have them."""
    return {record["round"]: numbers for record in records if (numbers := record.get("devices"))}
