"""The scores over clients that results.json has: of each run by round, and of each variant after the last round."""

import statistics
from collections.abc import Iterable, Sequence

from fedadamw.report.comparisons import score_interval
from fedadamw.report.run_files import RecordDict
from fedadamw.report.study_files import ClientColumns, ClientTimes, Summary
from fedadamw.report.virtual_time import has_clock


def client_columns(records: Sequence[RecordDict], sent: list[int]) -> ClientTimes:
    """Return the scores over clients of the rounds in which they were evaluated. sent: bytes until each of them."""
    found: ClientTimes = {
        "round": [record["round"] for record in records],
        "sent_bytes": sent,
        "clients_mean": [record.get("clients_mean") for record in records],
        "clients_weighted": [record.get("clients_weighted") for record in records],
        "clients_std": [record.get("clients_std") for record in records],
        "clients_worst_decile": [record.get("clients_worst_decile") for record in records],
        "clients_tuned": [(record.get("tuned") or {}).get("clients_mean") for record in records],
    }
    if has_clock(records):
        found["virtual_s"] = [record["virtual_s"] for record in records]
    return found


def add_clients(summary: Summary, columns: Sequence[ClientColumns]) -> Summary:
    """Return a variant's summary with its clients' scores after the last round."""
    means, worst = ([c[name][-1] for c in columns] for name in ("clients_mean", "clients_worst_decile"))
    tuned = [c["clients_tuned"][-1] for c in columns]
    summary["clients_mean"], summary["clients_mean_interval"] = mean_if_all(means), score_interval(means)
    summary["clients_weighted"] = mean_if_all(c["clients_weighted"][-1] for c in columns)
    summary["clients_std"] = mean_if_all(c["clients_std"][-1] for c in columns)
    summary["clients_worst_decile"] = mean_if_all(worst)
    summary["clients_worst_decile_interval"] = score_interval(worst)
    if any(value is not None for value in tuned):
        summary["clients_tuned"], summary["clients_tuned_interval"] = mean_if_all(tuned), score_interval(tuned)
    return summary


def mean_if_all(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None if any value is missing: the mean of the other seeds would be biased."""
    values = list(values)
    numbers = [value for value in values if value is not None]
    return statistics.mean(numbers) if numbers and len(numbers) == len(values) else None
