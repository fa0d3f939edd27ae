"""The table of docs/privacy.md on the membership attack, from measure/membership."""

import math
from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.common.records import read_newest
from fedadamw.report.intervals import mean_interval

HEADS = ("", "accuracy", "AUC of the attack", "at most", "true positives", "at most ")
MISSING = "There is no record yet: `python -m benchmarks.measure.membership --record`.\n"


def section() -> str:
    """Return introduction and table."""
    record = read_newest("membership", "cpu")
    return MISSING if record is None else describe(record)


def describe(record: Mapping[str, Any]) -> str:
    """Return introduction and table of a record."""
    lines = [_introduce(record), f"| {' | '.join(HEADS)} |", f"| --- |{' ---: |' * (len(HEADS) - 1)}"]
    for kind in record["kinds"].values():
        lines.append(f"| {' | '.join(_cells(kind, record['delta'], record['false_positives']))} |")
    return "\n".join(lines) + "\n"


def _introduce(record: Mapping[str, Any]) -> str:
    models = len(next(iter(record["kinds"].values()))["auc"])
    training = record["training"]
    return (
        f"The attack is the likelihood-ratio attack ([2112.03570](https://arxiv.org/abs/2112.03570)) on FedAdamW with "
        f"{record['clients']} clients ({record['rounds']} rounds of {training['steps']} steps, batches of "
        f"{training['batch_size']}, clip {record['clip']:g}), on digits, with a network of {record['width']} hidden "
        f"units: {models} models of each kind, each trained on half of the {record['samples']:,} digits; each in turn "
        "is attacked with the others as shadow models. AUC: how often a digit of the training data gets a higher score "
        f"than another one. True positives: at {record['false_positives']:.0%} false ones. *At most*: what (epsilon, "
        f"delta={record['delta']:g}) allows any attack, of a digit in whose place there is another one (halves have a "
        "fixed size), which is as with twice the epsilon. Accuracy is on the digits that a model was not trained on. "
        "All in percent; means over models ± half of their 95% interval, which takes models for independent, though "
        f"they share shadow models ({record['device']}).\n"
    )


def _cells(kind: Mapping[str, Any], delta: float, false_positives: float) -> list[str]:
    epsilon = kind["epsilon"]
    name = "no differential privacy" if epsilon is None else f"samples, epsilon {epsilon:g}"
    bounds = ["100", "100"]
    if epsilon is not None:  # one digit less and another one more: a group of two
        twice, rest = 2 * epsilon, delta * (1 + math.exp(epsilon))
        bounds = [_percent(most_auc(twice)), _percent(most_true_positives(twice, rest, false_positives))]
    return [name, _show(kind["accuracy"]), _show(kind["auc"]), bounds[0], _show(kind["true_positives"]), bounds[1]]


def most_auc(epsilon: float) -> float:
    """Return the largest area under a ROC curve that (epsilon, 0) allows; a small delta adds less than itself."""
    return math.exp(epsilon) / (1 + math.exp(epsilon))


def most_true_positives(epsilon: float, delta: float, false_positives: float) -> float:
    """Return the most true positives that (epsilon, delta) allows."""
    return min(math.exp(epsilon) * false_positives + delta, 1 - math.exp(-epsilon) * (1 - delta - false_positives), 1.0)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _show(shares: list[float]) -> str:
    interval = mean_interval([100 * share for share in shares])
    half = "" if interval is None else f" ± {(interval.high - interval.low) / 2:.1f}"
    return f"{100 * mean(shares):.1f}{half}"
