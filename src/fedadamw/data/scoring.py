"""Metrics of predictions, by name: scikit-learn's and SciPy's."""

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def _accuracy(labels: Array, predicted: Array, classes: int) -> float:
    return float((labels == predicted).mean())


def _f1(labels: Array, predicted: Array, classes: int) -> float:
    """Of class 1 where there are two classes, the mean over classes where there are more."""
    from sklearn.metrics import f1_score

    average = "binary" if classes == 2 else "macro"
    return float(f1_score(labels, predicted, average=average, zero_division=0.0))


def _matthews(labels: Array, predicted: Array, classes: int) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _spearman(labels: Array, predicted: Array, classes: int) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predicted)


def _pearson(labels: Array, predicted: Array, classes: int) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predicted)


def _correlation(of: Callable[[Array, Array], tuple[float, float]], labels: Array, predicted: Array) -> float:
    """0 where one of the two is constant, for which a correlation is not defined."""
    constant = np.ptp(labels) == 0 or np.ptp(predicted) == 0
    return 0.0 if constant else float(of(labels, predicted)[0])


METRICS: dict[str, Callable[[Array, Array, int], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "spearman": _spearman,
    "pearson": _pearson,
}
CLASSIFICATION, REGRESSION = ("accuracy", "f1"), ("spearman", "pearson")


def scores(names: tuple[str, ...], labels: Array, predicted: Array, classes: int) -> dict[str, float]:
    """The named metrics of `predicted` (n,) against `labels` (n,): classes, or numbers for the correlations."""
    return {name: METRICS[name](labels, predicted, classes) for name in names}
