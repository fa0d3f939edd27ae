"""A study's best variant against each other one: paired tests over seeds, as a table and in words."""

from collections.abc import Iterable, Mapping, Sequence

from fedadamw.report.intervals import BOOTSTRAP_FROM, LEVEL, adjust_holm, compare_pairs, mean_interval
from fedadamw.report.study_files import Comparison, Interval, Results, RunResult, Summary


def score_interval(scores: Iterable[float | None]) -> Interval | None:
    """Return the 95% interval of the mean of the seeds' scores; None if one is missing, or for one seed."""
    values = list(scores)
    numbers = [value for value in values if value is not None]
    found = mean_interval(numbers) if len(numbers) == len(values) else None
    return None if found is None else {"low": found.low, "high": found.high, "method": found.method}


def compare_with_best(runs: Sequence[RunResult], summary: Sequence[Summary]) -> list[Comparison]:
    """Compare the variant with the best mean score with each other one, over the seeds that both have."""
    scored = [s for s in summary if s["score"] is not None]
    ranked = sorted(scored, key=lambda s: -(s["score"] or 0.0))
    if len(ranked) < 2:
        return []
    scores = _scores_by_seed(runs)
    pairs = [_compare(scores, ranked[0]["variant"], other["variant"]) for other in ranked[1:]]
    found = [pair for pair in pairs if pair is not None]
    tested = [pair for pair in found if pair["p"] is not None]
    for pair, p in zip(tested, adjust_holm([pair["p"] or 0.0 for pair in tested]), strict=True):
        pair["p_holm"] = p
    return found


def _scores_by_seed(runs: Iterable[RunResult]) -> dict[str, dict[int, float]]:
    """Return variant -> seed -> final score, of the runs that have one."""
    scores: dict[str, dict[int, float]] = {}
    for run in runs:
        if (score := run["score"][-1]) is not None:
            scores.setdefault(run["variant"], {})[run["seed"]] = score
    return scores


def _compare(scores: Mapping[str, Mapping[int, float]], best: str, variant: str) -> Comparison | None:
    """Compare two variants; None if they have no seed in common."""
    seeds = sorted(scores[best].keys() & scores[variant].keys())
    if not seeds:
        return None
    test = compare_pairs([scores[best][seed] for seed in seeds], [scores[variant][seed] for seed in seeds])
    interval = test.interval and Interval(low=test.interval.low, high=test.interval.high, method=test.interval.method)
    return {
        "best": best,
        "variant": variant,
        "seeds": test.seeds,
        "difference": test.difference,
        "interval": interval,
        "p": test.p,
        "p_holm": None,
        "p_wilcoxon": test.p_wilcoxon,
        "seeds_needed": test.seeds_needed,
    }


def is_different(comparison: Comparison) -> bool:
    """Whether the paired t-test tells the two apart at 5%, after Holm's correction."""
    return comparison["p_holm"] is not None and comparison["p_holm"] < LEVEL


def is_best(results: Results, variant: str) -> bool:
    """Whether `variant` is better than each other one by the paired tests.

    With runs missing, the best mean may be of luckier seeds, and worse than another one over those that both have.
    """
    better = [c for c in results["comparisons"] if c["best"] == variant and c["difference"] > 0]
    scored = sum(s["score"] is not None for s in results["summary"])
    return scored > 1 and len(better) == scored - 1 and all(map(is_different, better))


def describe_comparison(comparison: Comparison) -> str:
    """Say whether the seeds tell the two apart, and if not, how many would."""
    count, needed = comparison["seeds"], comparison["seeds_needed"]
    if count < 2:
        return "one seed cannot tell; use three or more"
    if comparison["p"] is None:
        return f"the difference is the same with all {count} seeds: no test"
    if is_different(comparison):
        return f"{count} seeds tell these apart"
    if needed is None:
        return f"{count} seeds cannot tell these apart; more than 10,000 would be needed"
    if needed <= count:
        return f"{count} seeds cannot tell these apart after the correction"
    return f"{count} seeds cannot tell these apart; about {needed:,} would"


def comparison_headings(results: Results) -> list[str]:
    """Return the headings of `comparison_rows`."""
    wilcoxon = ["Wilcoxon p"] if _has_wilcoxon(results) else []
    best = results["comparisons"][0]["best"]
    return [f"{best} against", "points, 95% interval", "p", "p (Holm)", *wilcoxon, "can the seeds tell?"]


def comparison_rows(results: Results) -> list[list[str]]:
    """Return a row of text for each comparison, the nearest variant first."""
    return [
        [
            c["variant"],
            format_difference(c["difference"], c["interval"]),
            format_p(c["p"]),
            format_p(c["p_holm"]),
            *([format_p(c["p_wilcoxon"])] if _has_wilcoxon(results) else []),
            describe_comparison(c),
        ]
        for c in results["comparisons"]
    ]


def _has_wilcoxon(results: Results) -> bool:
    return any(c["p_wilcoxon"] is not None for c in results["comparisons"])


def describe_tests(results: Results) -> str:
    """Say which tests `comparison_rows` shows."""
    method = _join_methods(c["interval"] for c in results["comparisons"])
    interval = f", 95% intervals of its mean ({method})" if method else ""
    tested = sum(c["p"] is not None for c in results["comparisons"])
    tests = f"paired t-tests, with Holm's correction over {tested}" if tested else "no tests"
    what = "scores at that time" if "until_s" in results else "final scores"
    return (
        f"Difference of the {what}, in points (hundredths), paired by seed{interval}; {tests}. "
        "The best was picked by the same scores."
    )


def describe_intervals(results: Results) -> str:
    """Say what bands and ± are, and over how many seeds."""
    counts = sorted({s["seeds"] for s in results["summary"]})
    if not counts or counts[-1] < 2:
        return "One seed: no intervals."
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    method = "Student t" if counts[-1] < BOOTSTRAP_FROM else "bootstrap"
    if counts[0] < BOOTSTRAP_FROM <= counts[-1]:
        method = f"Student t, from {BOOTSTRAP_FROM} seeds on bootstrap"
    return f"95% intervals of the mean ({method}) over {seeds} seeds."


def _join_methods(intervals: Iterable[Interval | None]) -> str:
    names = {"t": "Student t", "bootstrap": "bootstrap"}
    return " or ".join(dict.fromkeys(names[i["method"]] for i in intervals if i is not None))


def format_difference(difference: float, interval: Interval | None) -> str:
    """Format a difference of two scores in points, such as `+1.2 (-0.5 to 2.9)`."""
    shown = f"{100 * difference:+.1f}"
    return shown if interval is None else f"{shown} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def format_p(p: float | None) -> str:
    """Format a p value."""
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
