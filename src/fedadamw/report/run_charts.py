"""Charts of a run; one altair definition each, for the page and for PNG files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias

import altair as alt
import numpy as np

from fedadamw.io.disk import report_full_disk
from fedadamw.io.escaping import escape_text
from fedadamw.report import metrics
from fedadamw.report.run_files import MAX_CLIENTS, RecordDict
from fedadamw.report.virtual_time import Unit, choose_unit, has_clock, is_buffered, name_time

Records = Sequence[RecordDict]
Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.HConcatChart

BLUE, ORANGE, GREY, GREEN = "#2563eb", "#ea580c", "#64748b", "#16a34a"

Width = int | str  # pixels, or "container": as wide as the page gives
Along = Literal["round", "virtual", "sent"]  # what a score is drawn along: rounds, virtual time or bytes


def rounds_axis(rounds: Iterable[object]) -> alt.Axis:
    """Return an axis with whole numbers; for up to three rounds each, since Vega's least step fails there."""
    shown = sorted({int(str(number)) for number in rounds})
    if shown and shown[-1] - shown[0] < 3:
        return alt.Axis(values=list(range(shown[0], shown[-1] + 1)), format="d")
    return alt.Axis(tickMinStep=1, format="d")


def curves_chart(records: Records, others: Sequence[Chart] = ()) -> Chart:
    """Return the score, the losses and the epsilon by round, those that there are, and other charts, side by side."""
    charts = [score_chart(records, width=420)] if metrics.find_evaluations(records) else []
    charts += [loss_chart(records, width=420)] if has_losses(records) or not has_epsilon(records) else []
    charts += [epsilon_chart(records, width=420)] if has_epsilon(records) else []
    charts += others
    if len(charts) == 1:
        return charts[0]
    return alt.hconcat(*charts, bounds="flush", spacing=64).resolve_scale(color="independent")


def score_chart(records: Records, *, by: Along = "round", width: Width = "container", height: int = 240) -> Chart:
    """Return the run's score by round, by bytes sent or, with a virtual clock, by its time; hovering shows all."""
    of = metrics.find_score(records)
    metric = metrics.main_metric(records, of)
    name, in_percent = metrics.name_score(metric, of), metrics.axis_format(metric) == "%"
    unit = choose_unit(max(record.get("virtual_s") or 0.0 for record in records))
    sent = accumulate(r["up_bytes"] for r in records)
    rows = [
        {"round": r["round"], "score": value, "sent": total / 1e6, **_time_of(r, unit)}
        for r, total in zip(records, sent, strict=True)
        if (value := metrics.score(r, of)) is not None
    ]
    hover = [
        alt.Tooltip("round:Q", title=name_rounds(records)),
        alt.Tooltip("score:Q", format=".2%" if in_percent else ".4g", title=name),
        alt.Tooltip("sent:Q", format=",.1f", title="MB sent up so far"),
    ]
    if has_clock(records):
        hover.append(alt.Tooltip("virtual:Q", format=",.3~f", title=unit.title(name_time(records))))
    x = {
        "round": alt.X("round:Q", title=name_rounds(records), axis=rounds_axis(row["round"] for row in rows)),
        "virtual": alt.X("virtual:Q", title=unit.title(name_time(records))),
        "sent": alt.X("sent:Q", title="MB sent up by all clients"),
    }
    base = alt.Chart(alt.Data(values=rows), title=metrics.begin_sentence(name)).encode(
        x=x[by],
        y=alt.Y("score:Q", title=None, axis=alt.Axis(format=metrics.axis_format(metric)), scale=alt.Scale(zero=False)),
    )
    line = base.mark_line(color=BLUE, strokeWidth=2.5)
    return (line + base.mark_circle(color=BLUE, size=28).encode(tooltip=hover)).properties(width=width, height=height)


def _time_of(record: RecordDict, unit: Unit) -> dict[str, float]:
    """Return the virtual time at the end of a round, in a unit; nothing without a clock."""
    seconds = record.get("virtual_s")
    return {} if seconds is None else {"virtual": round(seconds / unit.seconds, 6)}


def name_rounds(records: Records) -> str:
    """Return what the rounds of a run are called: `version` with buffered aggregation."""
    return "version" if is_buffered(record.get("devices") for record in records) else "round"


def has_losses(records: Records) -> bool:
    """Whether any round has a loss: with differential privacy there are no training losses."""
    values = ((r["train_loss"], r["test_loss"], (r.get("clients_metrics") or {}).get("loss")) for r in records)
    return any(value is not None for three in values for value in three)


def has_epsilon(records: Records) -> bool:
    """Whether the records have an epsilon that is a number."""
    return any(r.get("epsilon") is not None for r in records)


def epsilon_chart(records: Records, *, width: Width = "container", height: int = 240) -> Chart:
    """Return by round what the client that has spent most has spent; some round has an epsilon."""
    rows = [{"round": r["round"], "epsilon": r["epsilon"]} for r in records if r.get("epsilon") is not None]
    title = alt.TitleParams("Epsilon", subtitle="spent so far by the client that has spent most")
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X("round:Q", title="round", axis=rounds_axis(row["round"] for row in rows)),
        y=alt.Y("epsilon:Q", title=None, scale=alt.Scale(zero=True)),
    )
    hover = [alt.Tooltip("round:Q"), alt.Tooltip("epsilon:Q", format=".4g")]
    line = base.mark_line(color=GREEN, strokeWidth=2.5)
    return (line + base.mark_circle(color=GREEN, size=28).encode(tooltip=hover)).properties(width=width, height=height)


def loss_chart(records: Records, *, width: Width = "container", height: int = 240) -> Chart:
    """Return the clients' training loss and the test loss by round, or the clients' held-out loss if that is all."""
    names = ("clients' training loss", "test loss")
    values = [[r["train_loss"] for r in records], [r["test_loss"] for r in records]]
    if metrics.find_score(records) != "test":
        names = (names[0], "clients' held-out loss")
        values[1] = [(r.get("clients_metrics") or {}).get("loss") for r in records]
    rows = [
        {"round": r["round"], "loss": loss, "of": name}
        for name, column in zip(names, values, strict=True)
        for r, loss in zip(records, column, strict=True)
        if loss is not None
    ]
    known = [name for name in names if any(row["of"] == name for row in rows)]
    chart = alt.Chart(alt.Data(values=rows), title="Loss").mark_line(strokeWidth=2)
    return chart.encode(
        x=alt.X("round:Q", title=name_rounds(records), axis=rounds_axis(row["round"] for row in rows)),
        y=alt.Y("loss:Q", title=None),
        color=alt.Color(
            "of:N",
            title=None,
            scale=alt.Scale(domain=known, range=[GREY if name == names[0] else ORANGE for name in known]),
            legend=alt.Legend(orient="top-right"),
        ),
        tooltip=[alt.Tooltip("round:Q"), alt.Tooltip("of:N", title=" "), alt.Tooltip("loss:Q", format=".4f")],
    ).properties(width=width, height=height)


def partition_chart(
    counts: np.ndarray, classes: Sequence[str], *, clients: int | None = None, width: Width = 880
) -> Chart:
    """Return a heat map of the samples of each class (clients, classes) that each client has.

    clients: how many there are, if `counts` has only the first of them.
    """
    clients = max(clients or 0, len(counts))
    shown, names = counts[:MAX_CLIENTS], list(map(escape_text, classes))  # a picture cannot hold all characters
    rows = [
        {"client": int(i), "class": names[c], "samples": int(shown[i, c])}
        for i, c in zip(*np.nonzero(shown), strict=True)
    ]
    cut = "" if len(shown) == clients else f", {len(shown)} shown"
    title = alt.TitleParams("Who holds what", subtitle=f"{clients:,} clients{cut}, {len(classes)} classes")
    labels = alt.Axis(labels=len(classes) <= 40, ticks=len(classes) <= 40)
    step = max(len(shown) // 10, 1)
    return (
        alt.Chart(alt.Data(values=rows), title=title)
        .mark_rect()
        .encode(
            x=alt.X("client:O", title="client", axis=alt.Axis(values=list(range(0, len(shown), step)), labelAngle=0)),
            y=alt.Y("class:N", title=None, sort=names, axis=labels),
            color=alt.Color("samples:Q", title="samples", scale=alt.Scale(scheme="blues", domainMin=0)),
            tooltip=["client:O", "class:N", "samples:Q"],
        )
        .properties(width=width, height=min(max(14 * len(classes), 140), 480))
    )


def outcomes_chart(records: Records, *, width: Width = "container") -> Chart:
    """Return the outcomes of the sampled clients by round, if they are nodes on other machines."""
    kinds = [
        "answered",
        "clipped",
        "refused",
        "declined",
        "failed",
        "stale",
        "unreachable",
        "overdue",
        "surplus",
        "late",
    ]
    rows = [
        {"round": r["round"], "of": kind, "clients": r["federation"][kind]}
        for r in records
        for kind in kinds
        if r.get("federation", {}).get(kind)
    ]
    domain = [kind for kind in kinds if any(row["of"] == kind for row in rows)]
    return (
        alt.Chart(alt.Data(values=rows), title="Outcomes of the sampled clients")
        .mark_bar()
        .encode(
            x=alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("clients:Q", title=None, axis=alt.Axis(tickMinStep=1, format="d")),
            color=alt.Color("of:N", title=None, scale=alt.Scale(domain=domain)),
            tooltip=["round:O", "of:N", "clients:Q"],
        )
        .properties(width=width, height=160)
    )


def likelihood_table(records: Records) -> dict[str, dict[str, float]]:
    """Return, by class of block and M, the nats a gradient that this M predicts worse than the best M of the class.

    Mean over the rounds that have the diagnostic `likelihood`; {} if none has.
    """
    found: list[Any] = [
        numbers["likelihood"] for r in records if (numbers := r.get("diagnostics") or {}).get("likelihood")
    ]
    kinds = dict.fromkeys(kind for likelihood in found for kind in likelihood)
    table = {}
    for kind in kinds:
        rounds = [likelihood[kind] for likelihood in found if kind in likelihood]
        means = {memory: sum(of_round[memory] for of_round in rounds) / len(rounds) for memory in rounds[0]}
        table[kind] = {memory: max(means.values()) - mean for memory, mean in means.items()}
    return table


def likelihood_chart(table: Mapping[str, Mapping[str, float]], *, width: Width = "container") -> Chart:
    """Return a `likelihood_table` that is not empty as a heat map, with a dot on the best M of each class."""
    rows = [
        {"kind": kind, "memory": memory, "nats": nats}
        for kind, of_kind in table.items()
        for memory, nats in of_kind.items()
    ]
    title = alt.TitleParams(
        "What the carried v is worth",
        subtitle=["nats a gradient that it predicts worse", "than the best M of the class, the dot"],
    )
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X("memory:N", title="M, gradients", sort=None, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("kind:N", title=None, sort=None),
    )
    scale = alt.Scale(scheme="oranges", type="symlog", constant=0.02, domain=[0, 1], clamp=True)
    legend = alt.Legend(title="nats", values=[0, 0.1, 1])
    hover = ["kind:N", alt.Tooltip("memory:N", title="M"), alt.Tooltip("nats:Q", format=".3g")]
    cells = base.mark_rect().encode(color=alt.Color("nats:Q", scale=scale, legend=legend), tooltip=hover)
    best = base.mark_circle(color=BLUE, size=50, opacity=1).transform_filter("datum.nats == 0").encode(tooltip=hover)
    return (cells + best).properties(width=width, height=20 * len(table))


def apply_style(chart: Chart) -> Chart:
    """Return the chart with fonts and colors; call it once, on the whole chart."""
    return (
        chart.configure(font="Inter, Helvetica, Arial, sans-serif", background="white", padding=12)
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e5e7eb", domainColor="#9ca3af", tickColor="#9ca3af", labelColor="#374151")
        .configure_title(anchor="start", fontSize=14, color="#111827", subtitleColor=GREY)
    )


def to_spec(chart: Chart) -> dict[str, Any]:
    """Return the chart, with its style, in Vega-Lite's JSON."""
    return dict(apply_style(chart).to_dict(validate=False))


def save_chart(chart: Chart, path: Path) -> None:
    """Write a chart as .svg, or as .png at twice its size for sharp screens."""
    picture = apply_style(chart)
    picture.config.aria = False  # texts for screen readers, several times the size of the rest
    aside = path.with_name(f"new.{path.name}")
    try:
        with report_full_disk(path):
            picture.save(aside, scale_factor=2)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
