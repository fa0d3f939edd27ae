"""A study whose runs have a virtual clock: scores along virtual time, and how long it took to reach a score.

A score holds from its evaluation to the next. Runs of one variant are at other rounds at the same time, so their means
are of the scores that each seed has at that time.
"""

from bisect import bisect_right
from collections.abc import Sequence
from math import floor
from typing import Any, cast

from fedadamw.report.comparisons import compare_with_best, score_interval
from fedadamw.report.metrics import value_range
from fedadamw.report.study_files import Results, Row, RunResult, Summary
from fedadamw.report.study_rows import rows_of_point, runs_by_variant
from fedadamw.report.virtual_time import Unit, choose_unit

POINTS = 40  # of a curve, over the longest run
LEVELS = (0.5, 0.8, 0.9, 1.0)  # shares of the target that the time to it is given for


def has_virtual_time(results: Results) -> bool:
    """Whether all runs have a virtual clock, so that they can be compared over its time."""
    return bool(results["runs"]) and all(run.get("virtual_s") for run in results["runs"])


def unit_of(results: Results) -> Unit:
    """Return the unit of the study's virtual time, which suits the longest run; runs have a clock."""
    return choose_unit(max(run["virtual_s"][-1] for run in results["runs"]))


def time_rows(results: Results) -> list[Row]:
    """Return the scores along `virtual` time: of each variant a mean with its band, and of each seed.

    A mean begins when all seeds have been evaluated, and ends with the first seed that ends.
    """
    unit, limits = unit_of(results), value_range(results["metric"])
    step = max(run["virtual_s"][-1] for run in results["runs"]) / POINTS
    rows: list[Row] = []
    for variant, group in runs_by_variant(results["runs"]).items():
        first = max(run["virtual_s"][0] for run in group)
        last = min(run["virtual_s"][-1] for run in group)
        inner = [step * i for i in range(POINTS) if first < step * i < last]
        for seconds in [first, *inner, *([last] if last > first else [])]:
            found = {run["seed"]: score_at(run, seconds) for run in group}
            values = {seed: value for seed, value in found.items() if value is not None}
            point: Row = {"variant": variant, "virtual": round(seconds / unit.seconds, 6)}
            if len(values) == len(group):
                rows += rows_of_point(point, "score", values, limits)
    return rows


def score_at(run: RunResult, seconds: float) -> float | None:
    """Return the score of a run's last evaluation until a virtual time; None before the first, or if not finite."""
    place = bisect_right(run["virtual_s"], seconds)
    return run["score"][place - 1] if place else None


def time_to(run: RunResult, score: float) -> float | None:
    """Return the virtual seconds until a run's first evaluation with at least this score; None if it has none."""
    pairs = zip(run["virtual_s"], run["score"], strict=True)
    return next((seconds for seconds, value in pairs if value is not None and value >= score), None)


def at_equal_time(results: Results) -> tuple[float, Results]:
    """Return the virtual time of the run that ended first, and the study as it was then."""
    budget = min(run["virtual_s"][-1] for run in results["runs"])
    runs = [_cut(run, budget) for run in results["runs"] if run["virtual_s"][0] <= budget]
    summary: list[Summary] = []
    for each in results["summary"]:
        finals = [run["score"][-1] for run in runs if run["variant"] == each["variant"]]
        finals += [None] * (each["seeds"] - len(finals))  # seeds that were not evaluated yet
        numbers = [value for value in finals if value is not None]
        mean = sum(numbers) / len(numbers) if numbers and len(numbers) == len(finals) else None
        summary.append(cast(Summary, {**each, "score": mean, "score_interval": score_interval(finals)}))
    seen = {**results, "runs": runs, "summary": summary, "until_s": budget}
    return budget, cast(Results, {**seen, "comparisons": compare_with_best(runs, summary)})


def _cut(run: RunResult, budget: float) -> RunResult:
    """Return a run without the evaluations after a virtual time."""
    count = bisect_right(run["virtual_s"], budget)
    columns: dict[str, Any] = dict(run)
    names = ("round", "score", "test_loss", "train_loss", "sent_bytes", "virtual_s")
    return cast(RunResult, {**columns, **{name: columns[name][:count] for name in names}})


def choose_levels(results: Results) -> list[float]:
    """Return the scores that times are given to: the target, and shares of it in whole hundredths; none without one."""
    target = results["target"]
    if target is None or target <= 0:
        return []
    return sorted({floor(100 * target * share) / 100 if share < 1 else target for share in LEVELS} - {0.0})


def reach_headings(results: Results) -> list[str]:
    """Return the headings of `reach_rows`."""
    levels = [f"{level:.1%}".replace(".0%", "%") for level in choose_levels(results)]
    return [f"virtual {unit_of(results).name} to", *levels]


def reach_rows(results: Results) -> list[list[str]]:
    """Return a row of text for each variant: the virtual time to each level, those first that are the soonest there."""
    groups, levels, unit = runs_by_variant(results["runs"]), choose_levels(results), unit_of(results)
    times = {name: [[time_to(run, level) for run in group] for level in levels] for name, group in groups.items()}

    def order(name: str) -> list[tuple[int, float]]:
        """By how many seeds reached the highest level, then by how soon, then the same at the level below."""
        found = [[t for t in seeds if t is not None] for seeds in reversed(times[name])]
        return [(-len(known), sum(known) / max(len(known), 1)) for known in found]

    return [[name, *(format_times(seeds, unit) for seeds in times[name])] for name in sorted(times, key=order)]


def format_times(times: Sequence[float | None], unit: Unit) -> str:
    """Format the mean of seeds' virtual times with its 95% interval, or how many seeds have one if not all have."""
    known = [seconds / unit.seconds for seconds in times if seconds is not None]
    if len(known) < len(times):
        return f"{len(known)} of {len(times)} seeds" if known else "not reached"
    mean, interval = sum(known) / len(known), score_interval(known)
    if interval is None:
        return f"{mean:.3g}"
    if interval["method"] == "t":
        return f"{mean:.3g} ± {(interval['high'] - interval['low']) / 2:.2g}"
    return f"{mean:.3g} ({interval['low']:.3g} to {interval['high']:.3g})"


def describe_reach(results: Results) -> str:
    """Say what `reach_rows` shows."""
    seeds = max((s["seeds"] for s in results["summary"]), default=0)
    mean = "mean over the seeds with its 95% interval" if seeds > 1 else "one seed"
    return f"Virtual time until the first evaluation with at least that score: {mean}."
