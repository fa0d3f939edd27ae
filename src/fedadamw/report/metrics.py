"""Held-out metrics: which one of an evaluation is the main one, and how each is written."""

from collections.abc import Iterable, Mapping
from math import inf, isfinite

from fedadamw.report.run_files import RecordDict

Metrics = Mapping[str, float | None]  # of one evaluation, the main one first; None if it was not finite

LABELS = {  # others: their names
    "f1": "F1",
    "rouge-l": "ROUGE-L",
    "matthews": "Matthews",
    "spearman": "Spearman",
    "pearson": "Pearson",
}
CORRELATIONS = ("matthews", "spearman", "pearson")
OF_ANSWERS = ("exact-match", "rouge-l", "choice", "choice-norm")  # of a language model
IN_PERCENT = ("accuracy", "f1", *CORRELATIONS, *OF_ANSWERS)


def main_metric(records: Iterable[RecordDict]) -> str:
    """Return the main metric's name, from the first record with an evaluation."""
    return next(name for record in records for name in record["test_metrics"] or ())


def find_evaluations(records: Iterable[RecordDict]) -> list[int]:
    """Return the indices of the records with an evaluation."""
    return [i for i, record in enumerate(records) if record["test_metrics"]]


def score(record: RecordDict) -> float | None:
    """Return the main metric's value; None in a round without an evaluation, or if it was not finite."""
    return next(iter((record["test_metrics"] or {}).values()), None)


def label(name: str) -> str:
    """Return a metric's name as it is written in a sentence."""
    return LABELS.get(name, name)


def value_range(name: str | None) -> tuple[float, float]:
    """Return the least and the greatest value of a metric; 0 and 1 for an unknown one."""
    if name in CORRELATIONS:
        return -1.0, 1.0
    return 0.0, inf if name == "perplexity" else 1.0


def format_metric(name: str, value: float | None) -> str:
    """Format a metric's value: those of this package in percent, but a perplexity; `-` if it is not finite."""
    if value is None or not isfinite(value):
        return "-"
    return f"{value:.2%}" if name in IN_PERCENT else f"{value:.4g}"


def axis_format(name: str) -> str:
    """Return the format of a metric's values on an axis, in D3's language."""
    return "%" if name in IN_PERCENT else "~g"


def format_main_metric(metrics: Metrics) -> str:
    """Format the main metric of an evaluation: `accuracy 93.20%`."""
    name, value = next(iter(metrics.items()))
    return f"{label(name)} {format_metric(name, value)}"
