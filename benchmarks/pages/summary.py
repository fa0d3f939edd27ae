"""Draw docs/results/summary.svg, the README's figure: final accuracies from the committed results of three studies.

python -m benchmarks.pages.summary
"""

from typing import NamedTuple

import altair as alt

from benchmarks.pages.results import PICTURES, studies
from fedadamw.report.run_charts import save_chart
from fedadamw.report.study_files import Results, Row
from fedadamw.report.study_rows import final_rows
from fedadamw.study.results import read_results

PICTURE = PICTURES / "summary.svg"
COLORS = {"FedAdamW": "#2563eb", "same upload": "#475569", "twice the upload": "#ea580c"}
NAMES = {name.lower().replace(" ", "-"): name for name in (
    "FedAdamW", "Local AdamW", "Local Adam", "FedAvg", "FedProx", "SCAFFOLD", "FedCM", "FedAdam", "FedLADA", "FedMuon",
    "FedLion", "FedLAMB", "DiLoCo", "MuLoCo",
)}  # fmt: skip
COLOR_SCALE = alt.Scale(domain=list(COLORS), range=list(COLORS.values()))
LEGEND = alt.Legend(title=None, orient="bottom", symbolType="diamond", symbolOpacity=1, symbolSize=90)
TITLE = "Final test accuracy of FedAdamW, other algorithms and its ablations on CIFAR-10"
DESCRIPTION = "One row a variant: the mean of three seeds with its 95% interval, and the seeds. The numbers are in the \
tables of docs/results.md."


class Panel(NamedTuple):
    """One study of the figure."""

    study: str
    title: str
    limits: tuple[int, int]  # of the axis, in percent


PANELS = (
    Panel("small-cifar10-vit-dir0.1", "Small ViT: test accuracy in %", (16, 44)),
    Panel("small-cifar10-vit-dir0.1-parts", "Small ViT, FedAdamW without its parts", (16, 44)),
    Panel("small-cifar10-resnet-dir0.1", "Small ResNet", (12, 40)),
)


def main() -> None:
    save_chart(figure(), PICTURE)
    opening, rest = PICTURE.read_text().split(">", 1)
    PICTURE.write_text(f"{opening}><title>{TITLE}</title><desc>{DESCRIPTION}</desc>{rest}")


def figure() -> alt.VConcatChart:
    """Return the panels, one below the other."""
    panels = (panel_chart(panel, read_results(studies()[panel.study])) for panel in PANELS)
    chart = alt.vconcat(*panels, background="#ffffff", padding=14, spacing=22)
    chart = chart.configure_axis(labelFontSize=13, titleFontSize=13, labelLimit=220, gridColor="#e5e7eb")
    return chart.configure_title(fontSize=15, anchor="start").configure_legend(labelFontSize=13)


def panel_chart(panel: Panel, results: Results) -> alt.LayerChart:
    """Return a row for each variant, the best first: its mean with the 95% interval, and its seeds."""
    means = sorted(results["summary"], key=lambda s: -s["score"])
    order = [shown_name(s["variant"]) for s in means]
    base = alt.Chart(alt.Data(values=rows(results)), title=panel.title).encode(
        y=alt.Y("variant:N", title=None, sort=order, axis=alt.Axis(minExtent=200, domain=False, ticks=False)),
        color=alt.Color("kind:N", scale=COLOR_SCALE, legend=LEGEND),
    )
    first, last = panel.limits
    ticks = alt.Axis(values=list(range(first, last + 1, 4)), labelFlush=False)
    axis = {"title": None, "axis": ticks, "scale": alt.Scale(domain=[first, last], nice=False)}
    x, low = alt.X("score:Q", **axis), alt.X("low:Q", **axis)
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2.5).encode(x=low, x2="high:Q")
    seeds = base.transform_filter("isValid(datum.seed)").mark_circle(size=26, opacity=0.45).encode(x=x)
    marks = base.transform_filter("!isValid(datum.seed)").mark_point(size=80, filled=True, shape="diamond", opacity=1)
    return alt.layer(bars, seeds, marks.encode(x=x)).properties(width=330, height=21 * len(order))


def rows(results: Results) -> list[Row]:
    """Return the points in percent, each with the name and the kind of its variant."""
    sent = {s["variant"]: s["up_bytes_a_client"] for s in results["summary"]}
    found = []
    for row in final_rows(results):
        name = shown_name(row["variant"])
        twice = sent[row["variant"]] > 1.5 * min(sent.values())
        kind = "FedAdamW" if name == "FedAdamW" else "twice the upload" if twice else "same upload"
        percent = {key: 100 * row[key] for key in ("score", "low", "high") if row.get(key) is not None}
        found.append({**row, **percent, "variant": name, "kind": kind})
    return found


def shown_name(variant: str) -> str:
    """Return the variant as papers write it."""
    return NAMES.get(variant, variant)


if __name__ == "__main__":
    main()
