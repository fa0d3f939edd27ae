"""Write the numbers and draw the pictures of docs/unequal-devices.md, from the records of asynchronous and fleet.

The page is written by hand, but for its parts between two comments that name a section.

    python -m benchmarks.pages.asynchronous
"""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import altair as alt
import numpy as np

from benchmarks.common.records import ROOT, read_newest
from benchmarks.evidence.rule import Paired
from fedadamw.report.intervals import mean_interval
from fedadamw.report.run_charts import Chart, save_chart
from fedadamw.report.study_marks import COLORS

PAGE, PICTURES = ROOT / "docs" / "unequal-devices.md", ROOT / "docs" / "unequal-devices"
PART = re.compile(
    r"(<!-- (?P<name>[\w-]+): written by python -m benchmarks\.pages\.asynchronous -->\n).*?(<!-- end -->\n)",
    re.DOTALL,
)
NAMES = {"fedadamw": "FedAdamW", "local-adamw": "Local AdamW"}
MODES = {"waiting": "waits for all", "deadline": "deadline", "buffered": "buffered"}
HEADS = ["", "rounds", "score", "lr", "alpha", "staleness", "idle", "jobs that counted", "work of the slowest fifth"]
POINTS = 60  # of a curve
MISSING = "There is no record yet: `python -m benchmarks.measure.{} --record`.\n"


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text()))
    for name, chart in pictures().items():
        PICTURES.mkdir(exist_ok=True)
        save_chart(chart, PICTURES / f"{name}.svg")


def fill(page: str) -> str:
    """The page with what its sections say by the newest records."""
    return PART.sub(lambda part: f"{part[1]}\n{SECTIONS[part['name']]()}\n{part[3]}", page)


def pictures() -> dict[str, Chart]:
    """Return the pictures by name, if the record is there."""
    record = read_newest("asynchronous", "cpu")
    subjects = {} if record is None else record["subjects"]
    return {f"curve-{name}": draw(subject) for name, subject in subjects.items()}


def section_curves() -> str:
    """Return introduction, pictures and tables of the comparison."""
    record = read_newest("asynchronous", "cpu")
    return MISSING.format("asynchronous") if record is None else describe(record)


def section_fleet() -> str:
    """Return the sentences about the clock's cost."""
    record = read_newest("fleet", "cpu")
    return MISSING.format("fleet") if record is None else describe_fleet(record)


SECTIONS: Mapping[str, Callable[[], str]] = {"curves": section_curves, "fleet": section_fleet}


def describe(record: Mapping[str, Any]) -> str:
    """Return introduction, pictures and tables of a record of asynchronous."""
    parts = [_introduce(record)]
    for name, subject in record["subjects"].items():
        title = subject["title"]
        picture = f"![Accuracy over virtual time, {title}](unequal-devices/curve-{name}.svg)\n"
        parts += [f"### {title[0].upper()}{title[1:]}\n", picture, _scores_table(subject)]
        parts += [_differences_table(subject), _alphas_table(subject)]
    return "\n".join(part for part in parts if part)


def _introduce(record: Mapping[str, Any]) -> str:
    devices, modes = record["devices"], record["modes"]
    return (
        f"Log-normal speeds, the fast devices {devices['devices.speed.spread']:g} times as fast as the slow ones; "
        f"{record['at_work']} clients at work at any time ({record['device']}). One mode waits for all of them; one "
        f"takes the first {modes['deadline']['training.clients_per_round']} answers, and ends a round at a deadline of "
        "two and a half times what the median device takes; the buffered one makes a version of every "
        f"{modes['buffered']['training.buffer']} answers. A run ends when the one that waits does, by the virtual "
        "clock; devices, data and first model of a seed are the same for all. Each algorithm has its own learning rate "
        "and alpha in each mode, chosen on held-out training data with other seeds. Accuracy on the test set in "
        "percent, over the last tenth of the rounds, mean over seeds ± half of its 95% interval; differences are "
        "paired by seed, in points, with their 95% interval. Written by `python -m benchmarks.measure.asynchronous`.\n"
    )


def _scores_table(subject: Mapping[str, Any]) -> str:
    lines = _head(HEADS)
    for cell in subject["cells"]:
        runs = cell["runs"]
        row = [f"{NAMES[cell['algorithm']]}, {MODES[cell['mode']]}", _mean(runs, "rounds", "{:.0f}"), _score(cell)]
        row += ["-" if cell[key] is None else f"{cell[key]:g}" for key in ("lr", "alpha")]
        row += [_mean(runs, "staleness_mean", "{:.1f}"), _mean(runs, "idle", "{:.0%}")]
        row += [_counted(runs), _mean(runs, "slowest", "{:.0%}")]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _differences_table(subject: Mapping[str, Any]) -> str:
    lines = [*_head(["", "points", "says"])]
    for pair in subject["paired"]:
        (ours, mode), (base, other) = pair["ours"], pair["base"]
        what = (
            f"{NAMES[ours]}: {MODES[mode]} less {MODES[other]}"
            if ours == base
            else f"{MODES[mode]}: {NAMES[ours]} less {NAMES[base]}"
        )
        lines.append(f"| {what} | {' | '.join(_difference(pair))} |")
    return "\n".join(lines) + "\n"


def _alphas_table(subject: Mapping[str, Any]) -> str:
    """Return the scores by alpha of the trials with the seed that all of them have; "" if there are none."""
    found = {}
    for cell in subject["cells"]:
        scores = {t["alpha"]: t["score"] for t in cell["trials"] if t["lr"] == cell["lr"] and t["seed"] == 0}
        if len(scores) > 1:
            found[cell["mode"]] = scores
    if not found:
        return ""
    alphas = sorted(set().union(*found.values()))
    lines = _head(["FedAdamW's alpha, one seed of held-out training data", *(f"{alpha:g}" for alpha in alphas)])
    for mode, scores in found.items():
        lines.append(f"| {MODES[mode]} | {' | '.join(_percent(scores.get(alpha)) for alpha in alphas)} |")
    return "\n".join(lines) + "\n"


def describe_fleet(record: Mapping[str, Any]) -> str:
    """Return the sentences about a record of fleet."""
    plain = record["round_s"]["plain"]
    costs = " and ".join(
        f"{1e3 * found['round_s']:.1f} ms a round {WAYS[way]} ({found['of_training']:.1%} of its training)"
        for way, found in record["clocks"].items()
    )
    whole = ", ".join(f"{record['round_s'][way] / plain:.3f} times {WAYS[way]}" for way in record["clocks"])
    return (
        f"**The clock** of {record['devices']:,} devices, each there twice a day by a trace ({record['device']}): "
        f"{record['fleet_s']:.1f} s to read the trace and draw the fleet, which takes {record['fleet_mb']:.0f} MB; "
        f"then {costs}, where ten clients take ten steps of a small ViT with ten digits each in {plain:.2f} s. Whole "
        f"rounds, in turns with plain ones, took {whole} as long. Written by `python -m benchmarks.measure.fleet`.\n"
    )


WAYS = {"deadline": "with a deadline", "buffered": "buffered"}


def _head(heads: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]


def _mean(runs: Sequence[Mapping[str, Any]], key: str, form: str) -> str:
    values = [run[key] for run in runs if run[key] is not None]
    return form.format(mean(values)) if values else "-"


def _counted(runs: Sequence[Mapping[str, Any]]) -> str:
    counts = [(run["jobs"].get("counted", 0), sum(run["jobs"].values())) for run in runs]
    return f"{mean(n for n, _ in counts):.0f} of {mean(n for _, n in counts):.0f}" if counts else "-"


def _scores(cell: Mapping[str, Any]) -> list[float]:
    return [run["score"] for run in cell["runs"] if run["score"] is not None]


def _score(cell: Mapping[str, Any]) -> str:
    scores = _scores(cell)
    if not scores:
        return "diverged"
    interval, diverged = mean_interval(scores), len(cell["runs"]) - len(scores)
    half = "" if interval is None else f" ± {(interval.high - interval.low) / 2:.1f}"
    return f"{mean(scores):.1f}{half}" + (f" ({diverged} diverged)" if diverged else "")


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{score:.1f}"


def _difference(pair: Mapping[str, Any]) -> list[str]:
    if "n" not in pair:
        return ["-", "-"]
    paired = Paired(**{key: pair[key] for key in Paired._fields})
    return [f"{paired.difference:+.1f} ({paired.low:+.1f} to {paired.high:+.1f})", paired.verdict]


def draw(subject: Mapping[str, Any]) -> Chart:
    """Return mean scores along virtual time, with their intervals over seeds: a line a mode, a picture an algorithm."""
    rows = rows_of(subject)
    modes = list(MODES.values())
    color = alt.Color(
        "of:N", title=None, sort=modes, scale=alt.Scale(domain=modes, range=list(COLORS[: len(modes)])),
        legend=alt.Legend(orient="bottom", symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1),
    )  # fmt: skip
    percent = alt.Axis(format="%")
    base = alt.Chart().encode(x=alt.X("time:Q", title="virtual time: 1 is when the one that waits ends"), color=color)
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=None, axis=percent), y2="high:Q")
    line = base.mark_line(strokeWidth=2).encode(y=alt.Y("score:Q", title=None, axis=percent))
    both = alt.layer(band, line, data=alt.Data(values=rows)).properties(width=330, height=240)
    facet = alt.Facet("algorithm:N", title=None, sort=list(NAMES.values()))
    return both.facet(column=facet).properties(title=f"Accuracy, {subject['title']}")


def rows_of(subject: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the points of the picture."""
    rows: list[dict[str, object]] = []
    for cell in subject["cells"]:
        of = {"of": MODES[cell["mode"]], "algorithm": NAMES[cell["algorithm"]]}
        rows += [{**of, **point} for point in _points(cell["runs"])]
    return rows


def _points(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the mean score and its interval at equal steps of virtual time, from when all runs have a score on."""
    curves = []
    for run in runs:
        points = [(seconds / run["end_s"], score) for seconds, score in run["curve"] if score is not None]
        curves.append(np.array(points).reshape(-1, 2))
    if not all(map(len, curves)) or not curves:
        return []
    times = np.linspace(max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves), POINTS)
    found = []
    for time, scores in zip(times, zip(*(np.interp(times, *curve.T) for curve in curves), strict=True), strict=True):
        interval = mean_interval(scores)
        span = {} if interval is None else {"low": interval.low, "high": interval.high}
        found.append({"time": float(time), "score": mean(scores), **span})
    return found


if __name__ == "__main__":
    main()
