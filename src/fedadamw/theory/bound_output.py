"""Shows a bound: a table, the bound against weight decay, JSON."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from fedadamw.report.run_charts import Chart
from fedadamw.report.study_marks import COLORS, STROKES
from fedadamw.theory.bound import TAU, Bound, Moments, Run, bound, list_bounds

HEADINGS = ("rho", "weight decay", "width, nats", "distance, nats", "gap", "best weight decay", "gap there")
DECADES, PER_DECADE = (-6, 2), 12  # of weight decay, in the figure
VACUOUS = 1.0  # a loss in [0, 1] is never further than that from its mean


def bound_facts(run: Run, rhos: Sequence[float], moments: Moments) -> dict[str, Any]:
    """Return all numbers of the bounds, as JSON has them."""
    pairs = list_bounds(run, rhos, moments=moments)
    facts = {key: value for key, value in run._asdict().items() if key != "root_h"}
    return {
        **facts,
        "parameters": len(run.root_h),
        "moments": moments,
        "tau": TAU,
        "bounds": [{"rho": own.rho, "own": _facts(own), "best": _facts(best)} for own, best in pairs],
        "curve": _curves(run, rhos, moments),
    }


def _facts(found: Bound) -> dict[str, float]:
    return {**found._asdict(), "kl": found.kl}


def _curves(run: Run, rhos: Sequence[float], moments: Moments) -> list[dict[str, float]]:
    low, high = DECADES
    decays = np.logspace(low, high, (high - low) * PER_DECADE + 1).tolist()
    found = [bound(run, rho, value, moments=moments, tries=len(rhos)) for rho in rhos for value in decays]
    return [{"rho": b.rho, "weight_decay": b.weight_decay, "gap": b.gap} for b in found]


def bound_rows(facts: dict[str, Any]) -> list[list[str]]:
    """Return the table's cells under HEADINGS, a row for each rho."""
    rows = []
    for row in facts["bounds"]:
        own, best = row["own"], row["best"]
        numbers = (own["weight_decay"], own["width"], own["distance"], own["gap"], best["weight_decay"], best["gap"])
        rows.append([f"{row['rho']:g}", *(f"{number:.3g}" if number < 100 else f"{number:,.0f}" for number in numbers)])
    return rows


def judge(facts: dict[str, Any]) -> str:
    """Say whether the least gap says anything."""
    least = min(row[which]["gap"] for row in facts["bounds"] for which in ("own", "best"))
    n, d = facts["samples"], facts["parameters"]
    of = f"{d:,} parameters, {n:,} samples, {facts['moments']} moments"
    if least >= VACUOUS:
        return f"vacuous: the least gap is {least:.2f}, and a loss in [0, 1] is never more than 1 off ({of})"
    return f"the least gap is {least:.2f} ({of})"


def bound_chart(facts: dict[str, Any]) -> Chart:
    """Return the gap against weight decay for each rho, with the run's own and the best weight decay."""
    names = [f"rho {row['rho']:g}" for row in facts["bounds"]]
    curve = [{**point, "of": f"rho {point['rho']:g}"} for point in facts["curve"]]
    marks = [
        {"weight_decay": row[which]["weight_decay"], "gap": row[which]["gap"], "of": f"rho {row['rho']:g}", "at": label}
        for row in facts["bounds"]
        for which, label in (("own", "the run's"), ("best", "the best"))
        if 10 ** DECADES[0] <= row[which]["weight_decay"] <= 10 ** DECADES[1]
    ]
    axis = alt.Axis(format="~g", grid=False, labelOverlap=True)
    x = alt.X("weight_decay:Q", title="weight decay, lambda", scale=alt.Scale(type="log"), axis=axis)
    y = alt.Y("gap:Q", title="gap", scale=alt.Scale(type="log", nice=False, padding=8), axis=axis)
    legend = alt.Legend(orient="bottom", columns=5, **STROKES)
    color = alt.Color(
        "of:N", title=None, scale=alt.Scale(domain=names, range=list(COLORS[: len(names)])), legend=legend
    )
    shapes = alt.Scale(domain=["the run's", "the best"], range=["circle", "diamond"])
    shape = alt.Shape("at:N", title=None, scale=shapes, legend=alt.Legend(orient="bottom", symbolFillColor="#64748b"))
    lines = alt.Chart(alt.Data(values=curve)).mark_line(strokeWidth=2).encode(x=x, y=y, color=color)
    points = alt.Chart(alt.Data(values=marks)).mark_point(size=70, filled=True, opacity=1)
    limit = alt.Chart(alt.Data(values=[{"gap": VACUOUS}])).mark_rule(strokeDash=[6, 4]).encode(y="gap:Q")
    title = alt.TitleParams(
        "PAC-Bayes gap; above the dashed line it says nothing", fontSize=11, fontWeight="normal", color="#374151"
    )
    layers = (limit, lines, points.encode(x=x, y=y, color=color, shape=shape))
    return alt.layer(*layers).properties(width=420, height=260, title=title)
