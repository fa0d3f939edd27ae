"""Write docs/which-optimizer.md and its picture from the record of the harness in benchmarks/evidence.

python -m benchmarks.pages.which_optimizer
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import altair as alt

from benchmarks.common.records import ROOT, read_newest
from benchmarks.evidence.budgets import MEASURES, TITLES, Costs, Measure, budget_of, costs_of, curve, scores_at
from benchmarks.evidence.rule import FEWEST, compare
from benchmarks.pages.evidence import show_paired, word
from fedadamw.report.metrics import label
from fedadamw.report.run_charts import save_chart
from fedadamw.report.study_marks import COLORS

Record = Mapping[str, Any]
PAGE, PICTURE = ROOT / "docs" / "which-optimizer.md", ROOT / "docs" / "results" / "which-optimizer.svg"
SHOWN = ("vit-0.1", "resnet-0.6", "sst2-0.1")  # in the picture, a row each
AT = {"steps": "equal local steps", "bytes": "equal bytes sent", "time": "equal processor time"}


def main() -> None:
    record = read_newest("evidence", "cpu")
    if record is None:
        raise SystemExit("there is no record: python -m benchmarks.evidence --record")
    save_chart(picture(record), PICTURE)
    PAGE.write_text(page(record))
    print(f"written: {PAGE} and {Path(PICTURE).name}")


def page(record: Record) -> str:
    """Return the page as text."""
    usable = [workload for workload in record["workloads"] if len(compared(workload)) > 1]
    parts = [_introduction(), "![Scores against steps, bytes and time](results/which-optimizer.svg)\n"]
    parts += ["## What a round costs\n", costs_table(record, usable), "## At equal cost\n", _explain(record)]
    parts += [section_of(record, workload) for workload in usable]
    return "\n".join(parts)


def compared(workload: Record) -> dict[str, Record]:
    """Return the variants of a workload that have enough runs, by name."""
    return {v["name"]: v for v in workload["variants"] if sum(not run["error"] for run in v["runs"]) >= FEWEST}


def costs_table(record: Record, usable: list[Record]) -> str:
    """Return bytes and time of each variant against the base, the least and the most over workloads."""
    base = record["base"]
    found: dict[str, list[tuple[float, float]]] = {}
    for workload in usable:
        variants = compared(workload)
        costs = {name: costs_of(workload, variant) for name, variant in variants.items()}
        for name in costs if base in costs else ():
            ratios = costs[name].bytes / costs[base].bytes, costs[name].time / costs[base].time
            found.setdefault(name, []).append(ratios)
    lines = [
        f"| variant | bytes up, {word(base)} = 1 | time, {word(base)} = 1 | workloads |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, ratios in found.items():
        spans = [_span([ratio[i] for ratio in ratios]) for i in (0, 1)]
        lines.append(f"| {word(name)} | {spans[0]} | {spans[1]} | {len(ratios)} |")
    return "\n".join(lines) + "\n"


def section_of(record: Record, workload: Record) -> str:
    """Return a workload's table: each variant at equal steps, bytes and time, and who is best."""
    variants, base = compared(workload), record["base"]
    costs = {name: costs_of(workload, variant) for name, variant in variants.items()}
    heads = ["variant", *(f"{AT[m]}: {_amount(m, budget_of(costs, m))}" for m in MEASURES)]
    lines = [f"### {workload['title']}\n", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * len(MEASURES)}"]
    at = {m: _scores_at(workload, variants, costs, m) for m in MEASURES}
    for name in variants:
        cells = [word(name), *(_cell(at[m], name, base) for m in MEASURES)]
        lines.append(f"| {' | '.join(cells)} |")
    best = [f"at {AT[m]} {_best(at[m], base)}" for m in MEASURES if base in at[m]]
    metric = label(workload["metric"])
    return "\n".join(lines) + f"\n\n{metric[:1].upper()}{metric[1:]}. Best: {'; '.join(best)}.\n"


def picture(record: Record) -> alt.VConcatChart:
    """Return the curves of some workloads against steps, bytes and time."""
    rows = []
    for workload in record["workloads"]:
        variants = compared(workload)
        if workload["name"] in SHOWN and len(variants) > 1:
            costs = {name: costs_of(workload, variant) for name, variant in variants.items()}
            panels = [_panel(workload, variants, costs, measure) for measure in MEASURES]
            rows.append(alt.hconcat(*panels, spacing=24).properties(title=workload["title"]))
    return alt.vconcat(*rows, spacing=32)


def _panel(workload: Record, variants: Mapping[str, Record], costs: Mapping[str, Costs], measure: Measure) -> alt.Chart:
    points = [
        {"variant": word(name).replace("`", ""), "x": x, "score": score}
        for name, variant in variants.items()
        for x, score in curve(workload, variant, getattr(costs[name], measure))
    ]
    names = [word(name).replace("`", "") for name in variants]
    colour = alt.Color(
        "variant:N", title=None, scale=alt.Scale(domain=names, range=list(COLORS)), legend=alt.Legend(orient="bottom")
    )
    return (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=14))
        .encode(
            x=alt.X("x:Q", title=TITLES[measure]),
            y=alt.Y("score:Q", title=label(workload["metric"]), axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
            color=colour,
        )
        .properties(width=300, height=220)
    )


def _scores_at(
    workload: Record, variants: Mapping[str, Record], costs: Mapping[str, Costs], measure: Measure
) -> dict[str, dict[int, float]]:
    budget = budget_of(costs, measure)
    found = {n: scores_at(workload, v, getattr(costs[n], measure), budget) for n, v in variants.items()}
    return {name: scores for name, scores in found.items() if len(scores) >= FEWEST}


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
    near = [word(name) for name, paired in pairs.items() if paired is not None and paired.low <= 0]
    return word(first) + (f", not told apart from {', '.join(near)}" if near else "")


def _introduction() -> str:
    return (
        "# Which optimizer for what\n\nGenerated by `python -m benchmarks.pages.which_optimizer` from the runs of "
        "[the comparisons](results.md), in which every optimizer has its own tuned learning rate and at least "
        f"{FEWEST} seeds. What counts as equal decides: the same number of local steps, the same bytes over the "
        "network, or the same time on the clients' processors. In the picture each row is a workload; lines are means "
        "over seeds.\n"
    )


def _explain(record: Record) -> str:
    return (
        "Each column stops all variants at what the cheapest of them costs in a whole run, at the last evaluation "
        f"until then: the mean score, and its difference from {word(record['base'])} with the 95% interval (paired by "
        "seed, Student t). The learning rate falls to zero over a whole run, so a variant that is cut early would do "
        "better in a run planned for that length: the columns of bytes and time are unkind to whoever costs more. Time "
        "is the processor's on one core, evaluations included, on a machine that did other work: differences of a "
        "tenth are noise. *Best* names the highest mean difference and those whose interval against it reaches 0.\n"
    )


def _amount(measure: Measure, amount: float) -> str:
    unit = {"steps": "steps", "bytes": "MB", "time": "s"}[measure]
    return f"{amount:,.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"


def _span(ratios: list[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
