"""Sums over samples: they add up over parts of a set, give its metrics, and wrong ones are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadamw.data.scoring import compute_metrics
from fedadamw.data.sums import Classes, Hits, Losses, Numbers, Tokens
from fedadamw.validation import InputError

METRICS = ("matthews", "accuracy", "f1")
seeds = st.integers(0, 2**32 - 1)


def draw_classes(seed: int, classes: int, count: int) -> torch.Tensor:
    """Losses, labels and predictions (n, 3), of some of the classes."""
    g = np.random.default_rng(seed)
    labels, other = (g.integers(0, g.integers(1, classes + 1), count) for _ in range(2))
    predicted = np.where(g.random(count) < 0.5, labels, other)
    losses = np.where(labels == predicted, g.random(count), 0.7 + g.exponential(size=count))
    return torch.from_numpy(np.stack([losses, labels, predicted], 1).astype(np.float64))


def draw_numbers(seed: int, count: int) -> torch.Tensor:
    """Squared errors, labels and predictions (n, 3), near 3."""
    g = np.random.default_rng(seed)
    labels = np.float32(3 + g.normal(size=count))
    predicted = np.float32(0.5 * labels + g.normal(size=count))
    return torch.from_numpy(np.stack([np.square(labels - predicted), labels, predicted], 1).astype(np.float64))


def draw_tokens(seed: int, count: int) -> torch.Tensor:
    """Loss, tokens and right predictions of texts (n, 3)."""
    g = np.random.default_rng(seed)
    tokens = g.integers(0, 9, count)
    return torch.from_numpy(np.stack([tokens * g.random(count), tokens, g.integers(0, tokens + 1)], 1).astype(float))


def pool_parts(kind, outputs: torch.Tensor, cuts: list[int]):
    """Pool the sums of the parts of `outputs`, each of which passes the check."""
    parts = [part for part in torch.tensor_split(outputs, sorted(cuts)) if len(part)]
    sums = [kind.of(part) for part in parts]
    for own, part in zip(sums, parts, strict=True):
        kind.check(own, len(part))
    total = torch.stack(sums).sum(0)
    kind.check(total, len(outputs))
    torch.testing.assert_close(total, kind.of(outputs), rtol=1e-12, atol=1e-12)
    return kind.pool(total)


@given(seeds, st.integers(1, 5), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn's, of classes without samples
def test_counts_of_classes_give_the_metrics_of_the_union(seed, classes, count, cuts):
    outputs = draw_classes(seed, classes, count)
    found = pool_parts(Classes(METRICS, classes), outputs, cuts)
    loss, labels, predicted = outputs.numpy().T
    assert found.loss == pytest.approx(loss.mean(), abs=1e-10)
    assert list(found.metrics) == list(METRICS)
    assert found.metrics == pytest.approx(compute_metrics(METRICS, labels, predicted, classes), abs=1e-10)


@given(seeds, st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=40, deadline=None)
def test_moments_give_the_pearson_correlation_of_the_union(seed, count, cuts):
    outputs, kind = draw_numbers(seed, count), Numbers(("spearman", "pearson"), centre=2.5)
    found = pool_parts(kind, outputs, cuts)
    expected = compute_metrics(("pearson",), *outputs.numpy().T[1:], 1)
    assert found.metrics == pytest.approx(expected, abs=1e-10)
    assert kind.unpooled == ("spearman",)


@given(seeds, st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4))
@settings(max_examples=20, deadline=None)
def test_tokens_give_the_perplexity_of_the_union(seed, count, cuts):
    outputs = draw_tokens(seed, count)
    found = pool_parts(Tokens(9), outputs, cuts)
    loss, tokens, right = outputs.sum(0).tolist()
    assert found.loss == pytest.approx(loss / max(tokens, 1), abs=1e-10)
    perplexity = np.exp(loss / max(tokens, 1))
    assert found.metrics == pytest.approx({"accuracy": right / max(tokens, 1), "perplexity": perplexity}, abs=1e-10)


def test_a_correlation_with_constant_predictions_is_zero():
    outputs = draw_numbers(0, 50)
    outputs[:, 2] = float(np.float32(0.1))
    outputs[:, 0] = (outputs[:, 1] - outputs[:, 2]) ** 2
    assert pool_parts(Numbers(("pearson",)), outputs, [7, 30]).metrics == {"pearson": 0.0}


def test_a_correlation_with_predictions_that_are_not_finite_is_not_a_number():
    outputs, kind = draw_numbers(0, 50), Numbers(("pearson",))
    outputs[3, 2] = outputs[3, 0] = float("nan")
    assert np.isnan(kind.pool(kind.of(outputs)).metrics["pearson"])
    perfect = draw_numbers(0, 50)
    perfect[:, 2], perfect[:, 0] = -perfect[:, 1], 4 * perfect[:, 1] ** 2
    assert kind.pool(kind.of(perfect)).metrics["pearson"] == pytest.approx(-1.0, abs=1e-10)


def test_losses_alone_have_no_metric():
    kind = Losses(("auc",))
    assert pool_parts(kind, torch.tensor([[1.0, 9.0], [-3.0, 9.0]]), [1]) == (-1.0, {})
    assert kind.unpooled == ("auc",)


HITS, CLASSES = Hits(), Classes(("f1",), 2)
WRONG = {
    "another length": (HITS, [10, 5.0], "(2,) float64, not 3"),
    "not a number": (HITS, [10, float("nan"), 5], "not finite"),
    "infinite": (HITS, [10, float("inf"), 5], "not finite"),
    "no sample": (HITS, [0, 0.0, 0], "no sample"),
    "a negative count": (HITS, [10, 8.0, -1], "-1 is no count"),
    "a fraction": (HITS, [10, 8.0, 2.5], "2.5 is no count"),
    "half a sample": (HITS, [9.5, 8.0, 2], "9.5 is no count"),
    "too many samples": (HITS, [101, 80.0, 50], "101 samples; at most 100"),
    "more right than there are": (HITS, [10, 8.0, 11], "11 right predictions of 10"),
    "a negative loss": (HITS, [10, -8.0, 10], "below 0"),
    "a loss too small": (HITS, [10, 1.0, 5], "too small for 5 wrong"),
    "labels of other samples": (CLASSES, [10, 9.0, 3, 3, 5, 6, 5, 5], "11 labels of 10"),
    "predictions of other samples": (CLASSES, [10, 9.0, 3, 3, 5, 5, 5, 4], "9 predictions of 10"),
    "more right than labels": (CLASSES, [10, 9.0, 6, 0, 5, 5, 6, 4], "more right predictions of a class"),
    "no confusion matrix": (Classes(("f1",), 3), [4, 9.0, 0, 1, 1, 2, 1, 1, 2, 1, 1], "no confusion matrix"),
    "more right than tokens": (Tokens(8), [2, 9.0, 10, 11], "11 right predictions of 10 tokens"),
    "more tokens than texts have": (Tokens(8), [2, 9.0, 17, 5], "17 tokens in 2 texts"),
    "squares below zero": (Numbers(("pearson",)), [2, 1.0, 0, 0, -1, 2, 0], "no labels and predictions"),
    "a correlation above one": (Numbers(("pearson",)), [2, 0.0, 0, 0, 2, 2, 3], "no labels and predictions"),
    "another loss": (Numbers(("pearson",)), [2, 1.0, 0, 0, 2, 2, 0], "not the squared error"),
}


@pytest.mark.parametrize(("kind", "sums", "message"), WRONG.values(), ids=WRONG)
def test_sums_that_no_samples_have_are_refused(kind, sums, message):
    with pytest.raises(InputError) as error:
        kind.check(torch.tensor(sums, dtype=torch.float64), 100)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sums_in_single_precision_are_refused():
    with pytest.raises(InputError, match="float32"):
        HITS.check(torch.tensor([10.0, 8.0, 5.0]), None)
