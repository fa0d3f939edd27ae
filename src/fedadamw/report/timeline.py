"""A minute of a federation with simulated devices: a row for each device, its jobs as bars, versions as lines."""

from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import mean

import altair as alt

from fedadamw.report.client_charts import Names, name_client
from fedadamw.report.client_scores import choose_evenly
from fedadamw.report.device_charts import color_outcomes
from fedadamw.report.jobs import NAME, OUTCOMES, Job, read_jobs
from fedadamw.report.run_charts import GREY, Chart, Records, Width, name_rounds
from fedadamw.report.virtual_time import format_virtual, has_clock

MINUTE = 60.0
FEWEST, MOST = 2.0, 24.0  # rounds that a window has, if it is as long as a minute
WANTED = 6.0  # rounds in another window
LENGTHS = (*(m * 10.0**p for p in range(-2, 2) for m in (1, 2, 5)), 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
LENGTHS += tuple(3600.0 * hours for hours in (2, 4, 8, 24, 48, 96, 240))
MAX_ROWS = 30  # devices


def choose_window(records: Records, *, latest: bool) -> tuple[float, float]:
    """Return a minute in the middle of the run or at its end, or another length if a round takes more or much less."""
    total = records[-1].get("virtual_s") or 0.0
    of_round = total / len(records)
    length = MINUTE
    if not FEWEST * of_round <= MINUTE <= MOST * of_round and of_round > 0:
        length = min(LENGTHS, key=lambda seconds: abs(log(seconds / (WANTED * of_round))))
    if total <= length:
        return 0.0, total
    begin = total - length if latest else (total - length) / 2
    return begin, begin + length


def timeline_chart(
    folder: Path, records: Records, names: Names, *, latest: bool = False, width: Width = "container"
) -> Chart | None:
    """Return the jobs of a window in the middle of the run; None without a virtual clock, or if no job ran then.

    latest: of the window at its end, in which jobs that go on are missing.
    """
    if not has_clock(records):
        return None
    begin, end = choose_window(records, latest=latest)
    jobs = read_jobs(folder / NAME, begin, end)
    if not jobs or end <= begin:
        return None
    clients = _fastest_first(jobs)
    shown = [clients[i] for i in choose_evenly(len(clients), MAX_ROWS)]
    rows = [_row(job, begin, end, names) for job in jobs if job.client in shown]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("device:N", title=None, sort=[name_client(client, names) for client in shown])
    )
    window = alt.Scale(domain=[0, end - begin], nice=False)
    x = alt.X("begin:Q", title="seconds", scale=window)
    rounds = name_rounds(records)
    bars = base.mark_bar(height={"band": 0.7}, cornerRadius=1, x2Offset=-1).encode(
        x=x,
        x2="end:Q",
        color=color_outcomes(outcome for outcome in OUTCOMES if any(row["of"] == outcome for row in rows)),
        tooltip=_describe_job(rounds),
    )
    stale = base.transform_filter("datum.staleness > 0 && datum.of != 'lost'")
    stale = stale.mark_text(align="right", dx=-4, fontSize=9, color="white").encode(x="end:Q", text="staleness:Q")
    cut = "" if len(shown) == len(clients) else f", {len(shown)} shown"
    subtitle = [
        f"from {format_virtual(begin)} on; {len(clients)} devices at work{cut}, fastest first",
        "lines: new versions; numbers in bars: staleness" if rounds == "version" else "lines: ends of rounds",
    ]
    title = alt.TitleParams(f"{_name_length(end - begin)} of the federation", subtitle=subtitle)
    return (_lines(records, begin, end, x) + bars + stale).properties(
        title=title, width=width, height=max(16 * len(shown), 120)
    )


def _describe_job(rounds: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("device:N"),
        alt.Tooltip("of:N", title="outcome"),
        alt.Tooltip("version:Q", title=f"trained from {rounds}"),
        alt.Tooltip("staleness:Q"),
        alt.Tooltip("steps:Q", title="local steps"),
        alt.Tooltip("seconds:Q", title="seconds at work", format=",.3~f"),
    ]


def _lines(records: Records, begin: float, end: float, x: alt.X) -> alt.LayerChart:
    """Return a line where each version, or round, is there."""
    places = [
        {"begin": seconds - begin, "round": record["round"]}
        for record in records
        if begin <= (seconds := record.get("virtual_s") or 0.0) <= end
    ]
    base = alt.Chart(alt.Data(values=places)).encode(x=x)
    hover = [alt.Tooltip("round:Q", title=name_rounds(records))]
    rules = base.mark_rule(color=GREY, strokeWidth=1, opacity=0.8).encode(tooltip=hover)
    return rules + base.mark_text(color="#8493a8", fontSize=9, dy=-6).encode(y=alt.value(0), text="round:Q")


def _row(job: Job, begin: float, end: float, names: Names) -> dict[str, object]:
    return {
        "device": name_client(job.client, names),
        "begin": round(max(job.start_s, begin) - begin, 4),
        "end": round(min(job.finish_s, end) - begin, 4),
        "of": job.outcome,
        "version": job.version,
        "staleness": job.staleness,
        "steps": job.steps,
        "seconds": round(job.finish_s - job.start_s, 4),
    }


def _fastest_first(jobs: Sequence[Job]) -> list[int]:
    """Return the clients with jobs, those with the shortest ones first."""
    times: dict[int, list[float]] = {}
    for job in jobs:
        times.setdefault(job.client, []).append(job.finish_s - job.start_s)
    return sorted(times, key=lambda client: (mean(times[client]), client))


def _name_length(seconds: float) -> str:
    return "One minute" if round(seconds, 6) == MINUTE else format_virtual(seconds)
