"""Held-out metrics: which one of an evaluation is the main one, what a run's score is, and how each is written.

A run's score is the main metric on the test set. A run that never tests one model for all (personal parameters, no test
set) has the mean of its clients' scores instead. A study may be ordered by another of `SCORES`.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import Literal, TypeAlias, get_args

from fedadamw.report.run_files import RecordDict

Metrics = Mapping[str, float | None]  # of one evaluation, the main one first; None if it was not finite
Score: TypeAlias = Literal["test", "clients_mean", "clients_worst_decile"]
SCORES: tuple[Score, ...] = get_args(Score)

LABELS = {  # others: their names
    "f1": "F1",
    "rouge-l": "ROUGE-L",
    "matthews": "Matthews",
    "spearman": "Spearman",
    "pearson": "Pearson",
}
CORRELATIONS = ("matthews", "spearman", "pearson")
OF_ANSWERS = ("exact-match", "rouge-l", "choice", "choice-norm")  # of a language model
TUNED = "tuned_"  # what begins the names of scores after personal.finetune
IN_PERCENT = ("accuracy", "f1", *CORRELATIONS, *OF_ANSWERS)


def find_score(records: Iterable[RecordDict]) -> Score:
    """Return what a run with these records is judged by: the test score, or its clients' mean if it has none."""
    pooled: Metrics = {}
    for record in records:
        if record["test_metrics"]:
            return "test"
        pooled = pooled or clients_metrics(record) or {}
    return "clients_mean" if any(name != "loss" for name in pooled) else "test"


def metrics_of(record: RecordDict, of: Score) -> Metrics | None:
    """Return an evaluation's metrics, the main one first: on the test set, or pooled over the clients."""
    return record["test_metrics"] if of == "test" else clients_metrics(record)


def clients_metrics(record: RecordDict) -> Metrics | None:
    """Return the metrics pooled over a round's evaluated clients, or the loss if it is all; None if none were."""
    found = record.get("clients_metrics")
    return found and ({name: value for name, value in found.items() if name != "loss"} or found)


def main_metric(records: Sequence[RecordDict], of: Score | None = None) -> str:
    """Return the main metric's name, from the first record with an evaluation."""
    of = of or find_score(records)
    return next(name for record in records for name in metrics_of(record, of) or ())


def find_evaluations(records: Sequence[RecordDict], of: Score | None = None) -> list[int]:
    """Return the indices of the records that have the run's score, or the score `of`."""
    of = of or find_score(records)
    return [i for i, record in enumerate(records) if metrics_of(record, of)]


def score(record: RecordDict, of: Score = "test") -> float | None:
    """Return a score's value; None in a round without such an evaluation, or if it was not finite."""
    if of != "test":
        return record.get(of)
    return next(iter((record["test_metrics"] or {}).values()), None)


def name_score(metric: str, of: Score = "test") -> str:
    """Return a score's name as it is written in a sentence: `test accuracy`, `mean accuracy of clients`."""
    name = label(metric)
    names = {
        "test": f"test {name}",
        "clients_mean": f"mean {name} of clients",
        "clients_worst_decile": f"{name} of the worst tenth of clients",
    }
    return names[of]


def begin_sentence(text: str) -> str:
    """Return `text` with a capital letter in front."""
    return text[:1].upper() + text[1:]


def label(name: str) -> str:
    """Return a metric's name as it is written in a sentence."""
    if name.startswith(TUNED):
        return f"{label(name.removeprefix(TUNED))}, tuned"
    return LABELS.get(name, name)


def is_in_percent(name: str) -> bool:
    """Whether a metric is written in percent."""
    return name.removeprefix(TUNED) in IN_PERCENT


def value_range(name: str | None) -> tuple[float, float]:
    """Return the least and the greatest value of a metric; 0 and 1 for an unknown one."""
    if name in CORRELATIONS:
        return -1.0, 1.0
    return 0.0, inf if name == "perplexity" else 1.0


def format_metric(name: str, value: float | None) -> str:
    """Format a metric's value: those of this package in percent, but a perplexity; `-` if it is not finite."""
    if value is None or not isfinite(value):
        return "-"
    return f"{value:.2%}" if is_in_percent(name) else f"{value:.4g}"


def axis_format(name: str) -> str:
    """Return the format of a metric's values on an axis, in D3's language."""
    return "%" if is_in_percent(name) else "~g"


def format_main_metric(metrics: Metrics) -> str:
    """Format the main metric of an evaluation: `accuracy 93.20%`."""
    name, value = next(iter(metrics.items()))
    return f"{label(name)} {format_metric(name, value)}"


def epsilon_of(record: RecordDict) -> float | None:
    """Return the largest epsilon of a client until a round; inf without noise, None without privacy or if unknown."""
    if "epsilon" not in record:
        return None
    return inf if record["epsilon"] is None else record["epsilon"]


def describe_loss(record: RecordDict) -> str:
    """Return a round's training loss as it follows the round's number, `  loss 0.4321`; with privacy, the epsilon."""
    if (epsilon := epsilon_of(record)) is not None:
        return f"  epsilon {epsilon:.3g}"
    return "  loss -" if record["train_loss"] is None else f"  loss {record['train_loss']:.4f}"


def describe_scores(record: RecordDict) -> dict[str, str]:
    """Return the scores of one round as text by name, those that it has: `accuracy`, `mean accuracy of clients`."""
    tested, pooled = record["test_metrics"] or {}, clients_metrics(record) or {}
    found = {label(name): format_metric(name, tested[name]) for name in list(tested)[:1]}
    means = {name_score(name, "clients_mean"): name for name in list(pooled)[:1]}
    return found | {text: format_metric(name, record.get("clients_mean")) for text, name in means.items()}


def describe_last_score(records: Sequence[RecordDict]) -> str:
    """Format the newest value of a run's score: `accuracy 93.20%`, `mean accuracy of clients 91.05%`; "" before one."""
    of = find_score(records)
    evaluations = find_evaluations(records, of)
    if not evaluations:
        return ""
    last, name = records[evaluations[-1]], main_metric(records, of)
    return f"{label(name) if of == 'test' else name_score(name, of)} {format_metric(name, score(last, of))}"
