"""Write docs/which-optimizer.md and its picture from the record of the harness in benchmarks/evidence.

python -m benchmarks.pages.which_optimizer
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import altair as alt

from benchmarks.common.records import ROOT, read_newest
from benchmarks.evidence.budgets import MEASURES, TITLES, Measure, budget_of, costs_of, curve, scores_at
from benchmarks.evidence.rule import FEWEST, compare
from benchmarks.pages.evidence import show_paired, word
from fedadamw.report.metrics import label
from fedadamw.report.run_charts import save_chart
from fedadamw.report.study_marks import COLORS

Record = Mapping[str, Any]
PAGE, PICTURE = ROOT / "docs" / "which-optimizer.md", ROOT / "docs" / "results" / "which-optimizer.svg"
INDEX = ROOT / "docs" / "index.md"  # whose table of contents must have the page
SHOWN = ("vit-0.1", "resnet-0.6", "sst2-0.1")  # in the picture, a row each
AT = {"steps": "equal local steps", "bytes": "equal bytes sent up", "time": "equal processor time"}


def main() -> None:
    record = read_newest("evidence", "cpu")
    if record is None:
        raise SystemExit("there is no record: python -m benchmarks.evidence --record")
    save_chart(picture(record), PICTURE)
    PAGE.write_text(page(record))
    if "\nwhich-optimizer\n" not in INDEX.read_text():
        INDEX.write_text(INDEX.read_text().replace("\nresults\n", "\nresults\nwhich-optimizer\n", 1))
    print(f"written: {PAGE} and {Path(PICTURE).name}")


def page(record: Record) -> str:
    """Return the page as text."""
    usable = [workload for workload in record["workloads"] if len(compared(workload)) > 1]
    parts = [_introduction(), "![Scores against steps, bytes and time](results/which-optimizer.svg)\n"]
    parts += ["## In short\n", short_table(record, usable), "## What a round costs\n", costs_table(record, usable)]
    parts += ["## At equal cost\n", _explain(record)]
    parts += [section_of(record, workload) for workload in usable]
    return "\n".join(parts)


def compared(workload: Record) -> dict[str, Record]:
    """Return the variants of a workload that have enough runs, by name."""
    return {v["name"]: v for v in workload["variants"] if sum(not run["error"] for run in v["runs"]) >= FEWEST}


def short_table(record: Record, usable: list[Record]) -> str:
    """Return who is best on each workload at equal steps, bytes and time."""
    lines = [f"| workload | {' | '.join(AT[m] for m in MEASURES)} |", f"| --- |{' --- |' * len(MEASURES)}"]
    for workload in usable:
        at = scores_of_measures(workload)
        cells = [_best(at[m], record["base"]) if record["base"] in at[m] else "-" for m in MEASURES]
        lines.append(f"| {workload['title']} | {' | '.join(cells)} |")
    note = "The highest mean difference, and those whose interval against it reaches 0: see [below](#at-equal-cost)."
    return "\n".join(lines) + f"\n\n{note}\n"


def costs_table(record: Record, usable: list[Record]) -> str:
    """Return bytes up and down and time of each variant against the base, the least and the most over workloads."""
    base = record["base"]
    found: dict[str, list[tuple[float, ...]]] = {}
    for workload in usable:
        variants = compared(workload)
        costs = {name: costs_of(workload, variant) for name, variant in variants.items()}
        for name in costs if base in costs else ():
            own, one = ((c.bytes, variants[n]["down_bytes_a_client"], c.time) for n in (name, base) for c in [costs[n]])
            found.setdefault(name, []).append(tuple(a / b for a, b in zip(own, one, strict=True)))
    lines = ["| variant | bytes up | bytes down | time | workloads |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, ratios in found.items():
        spans = [_span(list(column)) for column in zip(*ratios, strict=True)]
        lines.append(f"| {word(name)} | {' | '.join(spans)} | {len(ratios)} |")
    return f"{word(base)} is 1. Bytes down are not in the comparisons below.\n\n" + "\n".join(lines) + "\n"


def section_of(record: Record, workload: Record) -> str:
    """Return a workload's table: each variant at equal steps, bytes and time, and who is best."""
    variants, base = compared(workload), record["base"]
    costs = {name: costs_of(workload, variant) for name, variant in variants.items()}
    heads = ["variant", *(f"{AT[m]}: {_amount(m, budget_of(costs, m))}" for m in MEASURES)]
    lines = [f"### {workload['title']}\n", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * len(MEASURES)}"]
    at = scores_of_measures(workload)
    for name in variants:
        cells = [word(name), *(_cell(at[m], name, base) for m in MEASURES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nScores: {label(workload['metric'])}, in points.\n"


def picture(record: Record) -> alt.VConcatChart:
    """Return the curves of some workloads against steps, bytes and time."""
    shown = [w for w in record["workloads"] if w["name"] in SHOWN and len(compared(w)) > 1]
    names = [_plain(name) for name in dict.fromkeys(name for workload in shown for name in compared(workload))]
    rows = [
        alt.hconcat(*(_panel(workload, measure, names) for measure in MEASURES), spacing=24).properties(
            title=workload["title"]
        )
        for workload in shown
    ]
    return alt.vconcat(*rows, spacing=32)


def _panel(workload: Record, measure: Measure, names: list[str]) -> alt.Chart:
    points = [
        {"variant": _plain(name), "x": x, "score": score}
        for name, variant in compared(workload).items()
        for x, score in curve(workload, variant, getattr(costs_of(workload, variant), measure))
    ]
    legend = alt.Legend(orient="bottom", columns=4, columnPadding=24, labelLimit=0)
    colour = alt.Color("variant:N", title=None, scale=alt.Scale(domain=names, range=list(COLORS)), legend=legend)
    metric = label(workload["metric"])
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=14))
        .encode(
            x=alt.X("x:Q", title=TITLES[measure], axis=alt.Axis(tickCount=5), scale=alt.Scale(zero=True, nice=False)),
            y=alt.Y("score:Q", title=metric, axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
            color=colour,
        )
        .properties(width=300, height=220)
    )


def _plain(name: str) -> str:
    """Return a variant's name for a picture."""
    return word(name).replace("`", "")


def scores_of_measures(workload: Record) -> dict[Measure, dict[str, dict[int, float]]]:
    """Return the scores by seed of each variant at equal steps, bytes and time, of those evaluated by then."""
    variants = compared(workload)
    costs = {name: costs_of(workload, variant) for name, variant in variants.items()}
    found: dict[Measure, dict[str, dict[int, float]]] = {}
    for measure in MEASURES:
        budget = budget_of(costs, measure)
        at = {n: scores_at(workload, v, getattr(costs[n], measure), budget) for n, v in variants.items()}
        found[measure] = {name: scores for name, scores in at.items() if len(scores) >= FEWEST}
    return found


def _cell(at: Mapping[str, Mapping[int, float]], name: str, base: str) -> str:
    if name not in at:
        return "no evaluation yet"
    score = f"{mean(at[name].values()):.1f}"
    if name == base or base not in at:
        return score
    return f"{score}: {show_paired(compare(at[name], at[base]), count=False)}"


def _difference(ours: Mapping[int, float], base: Mapping[int, float]) -> float:
    paired = compare(ours, base)
    return float("-inf") if paired is None else paired.difference


def _best(at: Mapping[str, Mapping[int, float]], base: str) -> str:
    """Return the variant with the best mean difference from the base, and those that are not told apart from it."""
    lead = {name: 0.0 if name == base else _difference(at[name], at[base]) for name in at}
    first = max(lead, key=lead.__getitem__)
    pairs = {name: compare(at[first], at[name]) for name in at if name != first}
    near = [word(name) for name, paired in pairs.items() if paired is None or paired.low <= 0]
    return word(first) + (f"; not told apart: {', '.join(near)}" if near else "")


def _introduction() -> str:
    return (
        "# Which optimizer for what\n\nGenerated by `python -m benchmarks.pages.which_optimizer` from the runs of "
        "[the comparisons](results.md), in which every optimizer has its own tuned learning rate and at least "
        f"{FEWEST} seeds. What counts as equal decides: the same number of local steps, the same bytes that "
        "clients send up, or the same time on the clients' processors. In the picture each row is a workload; lines "
        "are means over seeds.\n"
    )


def _explain(record: Record) -> str:
    return (
        "Each column stops all variants at what the cheapest of them costs in a whole run, at the last evaluation "
        f"until then, or until 5% more: the mean score, and its difference from {word(record['base'])} with the 95% "
        "interval (paired by seed, Student t). The learning rate falls to zero over a whole run, so a variant that is "
        "cut early would do better in a run planned for that length: the columns of bytes and time are unkind to "
        "whoever costs more. Time is the processor's on one core, evaluations included, on a machine that did other "
        "work: differences of a tenth are noise.\n"
    )


def _amount(measure: Measure, amount: float) -> str:
    unit = {"steps": "steps", "bytes": "MB", "time": "s"}[measure]
    return f"{amount:,.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"


def _span(ratios: list[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
