"""The part of a run's page on its devices: numbers, charts by round, a timeline; and the score along virtual time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedadamw.report.client_charts import Names
from fedadamw.report.device_charts import round_charts
from fedadamw.report.jobs import OUTCOMES
from fedadamw.report.metrics import find_evaluations
from fedadamw.report.run_charts import Along, Chart, Records, name_rounds, score_chart, to_spec
from fedadamw.report.timeline import timeline_chart
from fedadamw.report.virtual_time import format_virtual, has_clock, name_time

TIMELINE = "timeline"  # as wide as the page; the others are in pairs


def device_charts(
    folder: Path, records: Records, settings: Mapping[str, Any], names: Names, *, latest: bool = False, **size: int
) -> dict[str, tuple[str, Chart]]:
    """Return the charts that there are numbers for: name -> (heading, chart); none without a virtual clock.

    settings: of the run, nested, also of a version that had no devices. latest: the timeline is of the end of the run.
    size: of a picture, its `width` and `height`.
    """
    charts = round_charts(records, find_shares(settings), **size)
    wide = {name: value for name, value in size.items() if name == "width"}
    timeline = timeline_chart(folder, records, names, latest=latest, **wide) if charts else None
    return charts if timeline is None else {TIMELINE: ("Timeline", timeline), **charts}


def find_shares(settings: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of the devices that each class has, by the settings; {} without classes, or with a trace."""
    devices = settings.get("devices") or {}
    if devices.get("trace"):
        return {}
    return {name: of_class["share"] for name, of_class in (devices.get("classes") or {}).items()}


def render_devices(charts: Iterable[str]) -> str:
    """Return the section as HTML, with an empty panel for each of the charts; "" without any."""
    names = list(charts)
    if not names:
        return ""
    pairs = "".join(f"<div class=panel id={name}></div>" for name in names if name != TIMELINE)
    wide = f"<div class=panel id={TIMELINE}></div>\n" if TIMELINE in names else ""
    return f"<h2>Devices</h2>\n{wide}<div class=pair>{pairs}</div>\n"


def draw_along(records: Records) -> dict[str, dict[str, Any]]:
    """Return the score along each of what a reader of a run with a virtual clock chooses from: name -> chart.

    In Vega-Lite's JSON, the first one to begin with; {} without a clock or scores.
    """
    if not has_clock(records) or not find_evaluations(records):
        return {}
    names: dict[str, Along] = {name_time(records): "virtual", name_rounds(records): "round"}
    names["bytes sent"] = "sent"
    return {name: to_spec(score_chart(records, by=by)) for name, by in names.items()}


def summarize_devices(records: Records) -> list[tuple[str, str]]:
    """Return virtual time, what waited and what did not count; nothing of a run without a virtual clock."""
    if not has_clock(records):
        return []
    ends = [record.get("virtual_s") or 0.0 for record in records]
    numbers = [record.get("devices") or {} for record in records]
    passed = [end - begin for begin, end in zip([0.0, *ends], ends, strict=False)]
    idle = sum(seconds * (of.get("idle") or 0.0) for seconds, of in zip(passed, numbers, strict=True))
    counts = {outcome: sum(of.get(outcome) or 0 for of in numbers) for outcome in OUTCOMES}
    counted, done = counts["counted"], sum(counts.values())
    stale = [(of["staleness_mean"], of["counted"]) for of in numbers if of.get("staleness_mean") is not None]
    mean = sum(tau * count for tau, count in stale) / max(sum(count for _, count in stale), 1)
    virtual = name_time(records) == "virtual time"  # else the card `time` has it
    return [
        *([("virtual time", format_virtual(ends[-1]))] if virtual else []),
        ("of the devices' time idle", f"{idle / max(ends[-1], 1e-9):.0%}"),
        ("jobs that did not count", f"{done - counted:,} of {done:,}"),
        *([("mean staleness", f"{mean:.2f}")] if stale else []),
    ]
