"""Write the numbers and draw the pictures of docs/theory.md from the records of benchmarks/measure/theory_*.

The page is written by hand, but for its parts between two comments that name a section.

    python -m benchmarks.pages.theory
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common.records import ROOT, read_newest
from benchmarks.pages import theory_curvature
from fedadamw.report.run_charts import Chart, save_chart
from fedadamw.theory.bound import MOMENTS
from fedadamw.theory.bound_output import HEADINGS as BOUND_HEADINGS
from fedadamw.theory.bound_output import bound_chart, bound_rows, judge
from fedadamw.theory.methods import DEFAULTS
from fedadamw.theory.rate_output import HEADINGS, rate_chart, rate_rows

PAGE, PICTURES = ROOT / "docs" / "theory.md", ROOT / "docs" / "theory"
PART = re.compile(
    r"(<!-- (?P<name>[\w-]+): written by python -m benchmarks\.pages\.theory -->\n).*?(<!-- end -->\n)", re.DOTALL
)
MISSING = "There is no record yet: `python -m benchmarks.measure.{} --record`.\n"
NO_BREAK = "\u00a0"  # a space within a cell
Record = Mapping[str, Any]


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text()))
    PICTURES.mkdir(exist_ok=True)
    for name, chart in pictures().items():
        save_chart(chart, PICTURES / f"{name}.svg")


def fill(page: str) -> str:
    """The page with what its sections say by the newest records."""
    return PART.sub(lambda part: f"{part[1]}\n{SECTIONS[part['name']]()}\n{part[3]}", page)


def pictures() -> dict[str, Chart]:
    """Return the page's pictures by name, those whose records are there."""
    drawn = theory_curvature.pictures()
    if rates := read_newest("theory-rate", "cpu"):
        drawn |= {f"rate-{noise}": rate_chart(_choose(rates[noise], DEFAULTS)) for noise in ("gauss", "skew")}
        drawn["rate-memory"] = rate_chart(_choose(rates["skew"], _of_memory(rates["skew"])))
    if bounds := read_newest("theory-bound", "cpu"):
        drawn["bound"] = bound_chart(bounds["minibatch"])
    return drawn


def _choose(rate: Record, names: Sequence[str]) -> Any:
    """A measured rate with these algorithms only, in this order."""
    points = [point for name in names for point in rate["points"] if point["algorithm"] == name]
    return {**rate, "points": points, "slopes": [s for s in rate["slopes"] if s["algorithm"] in names]}


def _of_memory(rate: Record) -> list[str]:
    """FedAdamW with every memory, from none to all."""
    names = dict.fromkeys(point["algorithm"] for point in rate["points"])
    limited = [name for name in names if name.startswith("fedadamw:memory=")]
    return ["fedadamw:share=none", *sorted(limited, key=lambda name: int(name.split("=")[1])), "fedadamw"]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kept = [[first, *(cell.replace(" ", NO_BREAK) for cell in others)] for first, *others in rows]
    return theory_curvature.table(headings, kept)


def _rate_table(rate: Record, names: Sequence[str]) -> str:
    rows = [[_break_label(name), *cells] for name, *cells in rate_rows(_choose(rate, names))]
    return _table(HEADINGS, rows)


def _break_label(label: str) -> str:
    """An algorithm's label so that it may go on in a second line."""
    name, _, settings = label.partition(":")
    return f"`{name}` {settings.replace(',', ', ')}".strip()


def _slopes(rate: Record, names: Sequence[str], axes: Sequence[str]) -> list[float]:
    return [s["slope"] for s in rate["slopes"] if s["algorithm"] in names and s["axis"] in axes]


def _ratios(rate: Record, names: Sequence[str]) -> list[float]:
    return [point["ratio"] for point in rate["points"] if point["algorithm"] in names]


def gauss() -> str:
    record = read_newest("theory-rate", "cpu")
    if record is None:
        return MISSING.format("theory_rate")
    rate = record["gauss"]
    names = list(dict.fromkeys(point["algorithm"] for point in rate["points"]))
    slopes, ratios = _slopes(rate, names, ("clients", "steps", "rounds")), _ratios(rate, names)
    text = (
        f"All {len(slopes)} slopes lie between {min(slopes):.2f} and {max(slopes):.2f}, and every point between "
        f"{min(ratios):.2f} and {max(ratios):.2f} times P.\n"
    )
    return (
        f"![Gaussian noise: four algorithms on the line P](theory/rate-gauss.svg)\n\n{_rate_table(rate, names)}\n{text}"
    )


def skew() -> str:
    record = read_newest("theory-rate", "cpu")
    if record is None:
        return MISSING.format("theory_rate")
    rate, restarted = record["skew"], ("fedadamw:share=none", "local-adamw", "fadamgc")
    kept, lost = _slopes(rate, ["fedadamw"], ("clients", "rounds")), _slopes(rate, restarted, ("clients", "rounds"))
    ratios, of_memory = _ratios(rate, restarted), _of_memory(rate)[2:-1]
    names = dict.fromkeys(point["algorithm"] for point in rate["points"] if point["algorithm"] not in of_memory)
    text = (
        f"FedAdamW, whose v is carried, keeps its speed-up: slopes of {kept[0]:.2f} in clients and {kept[1]:.2f} in "
        f"rounds. So do DiLoCo, whose clients keep their own, and SGD. With a v that restarts (`share=none`, Local "
        f"AdamW, FAdamGC) the slopes are between {min(lost):+.2f} and {max(lost):+.2f}: more clients or rounds do not "
        f"help, and what is reached is {min(ratios):.0f} to {max(ratios):.0f} times P.\n"
    )
    picture = "![Skewed noise: only the carried v follows the line P](theory/rate-skew.svg)\n"
    return f"{picture}\n{_rate_table(rate, list(names))}\n{text}"


def memory() -> str:
    record = read_newest("theory-rate", "cpu")
    if record is None:
        return MISSING.format("theory_rate")
    rate = record["skew"]
    names = _of_memory(rate)
    at_center = {name: _at_center(rate, name) for name in names}
    least, most = at_center[names[-1]], at_center[names[0]]
    shares = [f"{(at_center[name] - least) / (most - least):.0%} with `{name.split(':')[1]}`" for name in names[1:-1]]
    text = (
        "In the center of the grid, of what a restarted v loses against a carried one, there remains "
        f"{', '.join(shares[:-1])} and {shares[-1]}.\n"
    )
    picture = "![Skewed noise: memories between none and all](theory/rate-memory.svg)\n"
    return f"{picture}\n{_rate_table(rate, names)}\n{text}"


def _at_center(rate: Record, name: str) -> float:
    """What an algorithm reaches where all axes have their middle values."""
    center = {axis: values[len(values) // 2] for axis, values in rate["axes"].items()}
    own = (point for point in rate["points"] if point["algorithm"] == name)
    return next(float(point["measured"]) for point in own if all(point[a] == value for a, value in center.items()))


def bound() -> str:
    record = read_newest("theory-bound", "cpu")
    if record is None:
        return MISSING.format("theory_bound")
    lines = ["![The bound against weight decay](theory/bound.svg)\n"]
    for moments in MOMENTS:
        facts = record[moments]
        lines += [f"`--moments {moments}`, the recipe `{record['recipe']}` after {record['rounds']} rounds:\n"]
        best = [row["best"]["weight_decay"] for row in facts["bounds"]]
        lines += [_table(BOUND_HEADINGS, bound_rows(facts)), f"{judge(facts)[0].upper()}{judge(facts)[1:]}."]
        lines += [f"The best weight decay goes from {min(best):.2g} to {max(best):.2g} with the prior that is taken.\n"]
    return "\n".join(lines)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "rate-gauss": gauss,
    "rate-skew": skew,
    "rate-memory": memory,
    "bound": bound,
    **theory_curvature.SECTIONS,
}


if __name__ == "__main__":
    main()
