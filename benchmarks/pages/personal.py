"""The table of docs/results.md that compares personal parameters with one global model, from measure/personal."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.common.records import read_newest
from benchmarks.evidence.rule import Paired, tail_score
from fedadamw.report.intervals import mean_interval

GLOBAL = "global"
HEADS = ["", "", "lr", "mean of clients", "worst tenth", "tuned", "less the global model", "seeds", "says"]


def section() -> str:
    """Return the section of the page; empty until the record is there."""
    record = read_newest("personal", "cpu")
    return "" if record is None else describe(record)


def describe(record: Mapping[str, Any]) -> str:
    """Return title, introduction and table of a record."""
    lines = ["## Personal models\n", _introduce(record)]
    lines += [f"| {' | '.join(HEADS)} |", f"| --- | --- |{' ---: |' * (len(HEADS) - 3)} --- |"]
    for workload in record["workloads"].values():
        for name, variant in workload["variants"].items():
            lines.append(f"| {' | '.join(_cells(workload, name, variant))} |")
    return "\n".join(lines) + "\n"


def _introduce(record: Mapping[str, Any]) -> str:
    steps = f"{record['finetune']} local steps"
    return (
        f"FedAdamW at Dirichlet 0.1 ({record['device']}). Each client holds out {record['held_out']:.0%} of its "
        "samples, and its score is the accuracy there: of the global model, or of the model with its own head or "
        "norms. The mean over all clients, in percent, is averaged over the last tenth of the rounds, ± half of its "
        "95% interval over seeds; so is the mean of the worst tenth of the clients. *tuned*: the mean of clients after "
        f"the last round, when each has tuned the final model by {steps}. The difference is paired by seed, in points, "
        "with its 95% interval, and seeds follow the rules above, at most ten. Written by "
        "`python -m benchmarks.measure.personal`.\n"
    )


def _cells(workload: Mapping[str, Any], name: str, variant: Mapping[str, Any]) -> list[str]:
    """Return the row of a variant."""
    title = workload["title"] if name == GLOBAL else ""
    means, worst = (
        [100 * score for run in variant["runs"] if (score := _tail(run, key)) is not None]
        for key in ("clients_mean", "clients_worst_decile")
    )
    tuned = [100 * run["tuned"]["clients_mean"] for run in variant["runs"] if run["tuned"] is not None]
    paired = None if name == GLOBAL or workload["paired"] is None else Paired(**workload["paired"])
    difference = "-" if paired is None else f"{paired.difference:+.1f} ({paired.low:+.1f} to {paired.high:+.1f})"
    says = "-" if paired is None else paired.verdict
    return [title, name, f"{variant['lr']:g}", *map(_show, (means, worst, tuned)), difference, str(len(means)), says]


def _tail(run: Mapping[str, Any], key: str) -> float | None:
    return None if run["error"] is not None else tail_score(run["round"], run[key], run["rounds"])


def _show(scores: list[float]) -> str:
    interval = mean_interval(scores)
    return f"{mean(scores):.1f}" + ("" if interval is None else f" ± {(interval.high - interval.low) / 2:.1f}")
