"""Metrics of predictions, by name: scikit-learn's and SciPy's."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def _accuracy(labels: Array, predicted: Array, classes: int) -> float:
    return float((labels == predicted).mean())


def _f1(labels: Array, predicted: Array, classes: int) -> float:
    """Return the F1 of class 1 if there are two classes, else the mean over classes."""
    from sklearn.metrics import f1_score

    average = "binary" if classes == 2 else "macro"
    return float(f1_score(labels, predicted, average=average, zero_division=0.0))


def _matthews(labels: Array, predicted: Array, classes: int) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _spearman(labels: Array, predicted: Array, classes: int) -> float:
    from scipy.stats import spearmanr

    return _correlate(spearmanr, labels, predicted)


def _pearson(labels: Array, predicted: Array, classes: int) -> float:
    from scipy.stats import pearsonr

    return _correlate(pearsonr, labels, predicted)


def _correlate(measure: Callable[[Array, Array], tuple[float, float]], labels: Array, predicted: Array) -> float:
    """Return the correlation, 0 if one of the two is constant (it is not defined then)."""
    constant = np.ptp(labels) == 0 or np.ptp(predicted) == 0
    return 0.0 if constant else float(measure(labels, predicted)[0])


METRICS: dict[str, Callable[[Array, Array, int], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "spearman": _spearman,
    "pearson": _pearson,
}
CLASSIFICATION, REGRESSION = ("accuracy", "f1"), ("spearman", "pearson")


def compute_metrics(names: tuple[str, ...], labels: Array, predicted: Array, classes: int) -> dict[str, float]:
    """Compute the named metrics of `predicted` (n,) against `labels` (n,): classes, or numbers for the correlations."""
    return {name: METRICS[name](labels, predicted, classes) for name in names}
