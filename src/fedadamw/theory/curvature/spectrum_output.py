"""Shows a spectrum: the headline numbers, and eigenvalues by rank on logarithmic axes."""

import math

import altair as alt
import torch

from fedadamw.report.run_charts import BLUE, ORANGE, Chart
from fedadamw.theory.curvature.spectrum import Spectrum

SMALLEST = 1e-7  # of the largest eigenvalue: smaller ones are rounding in float32
POINTS = 300  # in the picture, evenly over the logarithm of the rank
NAMES = {"gauss-newton": "Gauss-Newton matrix", "hessian": "Hessian"}
METHODS = {"exact": "exact", "lanczos": "stochastic Lanczos"}
POSITIVE, NEGATIVE = "above 0", "below 0, without the sign"


def spectrum_lines(spectrum: Spectrum) -> list[tuple[str, str]]:
    """Return the headline numbers as (label, text)."""
    facts = spectrum.facts()
    return [
        ("matrix", f"{NAMES[spectrum.matrix]}, {METHODS[spectrum.method]}, {spectrum.samples:,} samples"),
        ("parameters", f"{spectrum.d:,}"),
        ("largest eigenvalue", f"{facts['largest']:.4g}"),
        ("smallest", f"{facts['smallest']:.4g}"),
        ("trace", f"{facts['trace']:.4g}"),
        ("sum of roots", f"{facts['sum_of_roots']:.4g}"),
        ("half of the trace is in", f"{max(1, round(facts['half_of_trace'])):,} eigenvalues"),
        ("trace² / sum of squares", f"{facts['effective_rank']:.3g}"),
    ]


def spectrum_chart(spectrum: Spectrum) -> Chart:
    """Return the absolute eigenvalues by rank; those below 0 in their own order."""
    rows = [
        row
        for name, sign in ((POSITIVE, 1.0), (NEGATIVE, -1.0))
        for row in _ranked(sign * spectrum.values, spectrum.counts, name)
    ]
    shown = [name for name in (POSITIVE, NEGATIVE) if any(row["of"] == name for row in rows)]
    color = alt.Color(
        "of:N",
        title=None,
        scale=alt.Scale(domain=shown, range=[BLUE, ORANGE]),
        legend=alt.Legend(orient="bottom") if len(shown) > 1 else None,
    )
    title = alt.TitleParams(
        f"Eigenvalues of the {NAMES[spectrum.matrix]}",
        subtitle=f"{METHODS[spectrum.method]}, {spectrum.samples:,} samples, {spectrum.d:,} parameters",
    )
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X("rank:Q", title="rank", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(format="~s")),
        y=alt.Y("value:Q", title="eigenvalue", scale=alt.Scale(type="log"), axis=alt.Axis(format="~g")),
        color=color,
    )
    marks = base.mark_line(strokeWidth=1.5) + base.mark_circle(size=24, opacity=0.8)
    return marks.properties(width=520, height=300)


def _ranked(values: torch.Tensor, counts: torch.Tensor, name: str) -> list[dict[str, float | str]]:
    """Return rows of the values above rounding, descending, at the middle of the ranks that each stands for."""
    order = values.argsort(descending=True)
    values, counts = values[order], counts[order]
    kept = values > SMALLEST * values.abs().max()
    ranks = (counts.cumsum(0) - counts / 2 + 0.5).clamp(min=1)
    places = torch.logspace(0, math.log10(max(1, int(kept.sum()))), POINTS).round().long().unique() - 1
    chosen = zip(ranks[kept].tolist(), values[kept].tolist(), strict=True)
    shown = set(places.tolist())
    return [{"rank": rank, "value": value, "of": name} for i, (rank, value) in enumerate(chosen) if i in shown]
