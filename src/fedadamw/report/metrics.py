"""What is measured on the held-out set, by name: which metric is the main one, and how each is shown."""

from collections.abc import Iterable, Mapping
from math import inf, isfinite

from fedadamw.report.run_files import RecordDict

Metrics = Mapping[str, float | None]  # of one evaluation, the main one first; None: its number was not finite

LABELS = {"f1": "F1", "matthews": "Matthews", "spearman": "Spearman", "pearson": "Pearson"}  # the others as they are

CORRELATIONS = ("matthews", "spearman", "pearson")


def main(records: Iterable[RecordDict]) -> str:
    """The main metric's name, of the first record with an evaluation."""
    first: Metrics = next(record["test_metrics"] for record in records if record["test_metrics"])
    return next(iter(first))


def evaluated(records: Iterable[RecordDict]) -> list[int]:
    """Which of the records have an evaluation, whatever it came to."""
    return [i for i, record in enumerate(records) if record["test_metrics"]]


def score(record: RecordDict) -> float | None:
    """The main metric's value, None in a round without an evaluation, or where it was not finite."""
    return next(iter((record["test_metrics"] or {}).values()), None)


def label(name: str) -> str:
    """A metric's name as it stands in a sentence."""
    return LABELS.get(name, name)


def bounds(name: str | None) -> tuple[float, float]:
    """The least and the greatest value that a metric can have; 0 and 1 where nothing is known of it."""
    if name in CORRELATIONS:
        return -1.0, 1.0
    return 0.0, inf if name == "perplexity" else 1.0


def shown(name: str, value: float | None) -> str:
    """A metric's value in words: a perplexity as it is, any other in percent; `-` for a number that is not finite."""
    if value is None or not isfinite(value):
        return "-"
    return f"{value:.4g}" if name == "perplexity" else f"{value:.2%}"


def in_words(metrics: Metrics) -> str:
    """The main metric of an evaluation: `accuracy 93.20%`."""
    name, value = next(iter(metrics.items()))
    return f"{label(name)} {shown(name, value)}"
