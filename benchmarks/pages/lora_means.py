"""The table of docs/results.md that compares the ways to average adapters, from the record of measure/lora_means."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.common.records import read_newest
from fedadamw.report.intervals import compare_pairs, mean_interval

USUAL = "factors"  # which the others are compared with


def section() -> str:
    """Return the section of the page; empty until the record is there."""
    record = read_newest("lora-means", "cpu")
    return "" if record is None else describe(record)


def describe(record: Mapping[str, Any]) -> str:
    """Return title, introduction and table of a record."""
    runs = record["runs"]
    aggregates = list(dict.fromkeys(run["aggregate"] for run in runs))
    concentrations = sorted({run["concentration"] for run in runs})
    seeds = len({run["seed"] for run in runs})
    heads = [f"Dirichlet {c:g}{what}" for c in concentrations for what in ("", f", less `{USUAL}`")]
    heads = ["`lora.aggregate`", *heads, "MB up, a client and round", "MB down"]
    lines = ["## The means of adapters on SST-2\n", _introduce(record, seeds)]
    lines += [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for name in aggregates:
        own = [run for run in runs if run["aggregate"] == name]
        cells = [f"`{name}`"]
        for concentration in concentrations:
            scores, usual = (_scores(runs, which, concentration) for which in (name, USUAL))
            cells += [_show(scores), "-" if name == USUAL else _difference(scores, usual)]
        cells += [f"{mean(run[f'{way}_bytes_a_client'] for run in own) / 1e6:.2f}" for way in ("up", "down")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _introduce(record: Mapping[str, Any], seeds: int) -> str:
    length = f"{record['rounds']} rounds of {record['steps']} steps of {record['batch_size']} texts"
    of = f"{length}, {seeds} seed{'s' * (seeds > 1)} ({record['device']})"
    return (
        f"Recipe `{record['recipe']}` with FedAdamW and {record['clients_per_round']} clients a round, {of}: test "
        f"accuracy after the last round, ± half of its 95% interval, and the mean paired difference from `{USUAL}` in "
        f"points with its interval. All have the learning rate that was tuned for `{USUAL}`. Written by "
        "`python -m benchmarks.measure.lora_means`.\n"
    )


def _scores(runs: list[dict[str, Any]], aggregate: str, concentration: float) -> list[float]:
    """Return the final scores by seed, in percent."""
    own = [run for run in runs if (run["aggregate"], run["concentration"]) == (aggregate, concentration)]
    return [100 * run["score"][-1] for run in sorted(own, key=lambda run: run["seed"])]


def _show(scores: list[float]) -> str:
    interval = mean_interval(scores)
    return f"{mean(scores):.1f}" + ("" if interval is None else f" ± {(interval.high - interval.low) / 2:.1f}")


def _difference(scores: list[float], usual: list[float]) -> str:
    test = compare_pairs(scores, usual)
    if test.interval is None:
        return f"{test.difference:+.1f}"
    return f"{test.difference:+.1f} ({test.interval.low:+.1f} to {test.interval.high:+.1f})"
