"""Predictions of theory against literal loops."""

from math import sqrt

import pytest

from fedadamw.theory.methods import parse_method
from fedadamw.theory.prediction import Point, Quadratic, best_lr, kappa, predict
from fedadamw.validation import InputError


def literal_kappa(steps: int, beta1: float) -> float:
    """The weights of the gradients in a round's update, by running Adam's momentum on each."""
    w = []
    for j in range(1, steps + 1):
        m, moved = 0.0, 0.0
        for k in range(1, steps + 1):
            m = beta1 * m + (1 - beta1) * (1.0 if k == j else 0.0)
            moved += m / (1 - beta1**k)
        w.append(moved)
    return steps * sum(value * value for value in w) / sum(w) ** 2


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 80])
def test_kappa_is_that_of_a_literal_loop(steps, beta1):
    assert kappa(steps, beta1) == pytest.approx(literal_kappa(steps, beta1), rel=1e-12)


def test_kappa_of_known_lengths():
    assert [round(kappa(k, 0.9), 3) for k in (1, 5, 10, 20, 50)] == [1.0, 1.445, 1.5, 1.437, 1.239]


def test_no_learning_rate_has_a_lower_sum_than_the_best():
    """The mean of |grad f|^2 is Delta/(e R) + e L sigma^2 kappa/(2 S K) for a round of length e = K lr."""
    problem, point = Quadratic(smoothness=2.0, gap=0.3, sigma=5.0), Point(4, 10, 200)
    noise = problem.smoothness * problem.sigma**2 * kappa(10, 0.9) / (2 * 4 * 10)

    def total(lr: float) -> float:
        length = 10 * lr
        return problem.gap / (length * 200) + length * noise

    lr = best_lr(problem, point, 0.9)
    assert total(lr) == pytest.approx(predict(problem, point, 0.9), rel=1e-12)
    assert total(lr) < min(total(lr * 1.01), total(lr * 0.99))


def test_learning_rates_are_in_the_units_of_each_algorithms_steps():
    problem, point = Quadratic(), Point(8, 20, 400)
    adam, whole, half = (
        parse_method(name).lr(problem, point) for name in ("local-adamw", "fedadamw:alpha=0", "fedadamw")
    )
    sgd = parse_method("fedavg").lr(problem, point)
    assert adam == whole == 2 * half
    assert adam == pytest.approx(sgd * 10 / sqrt(32) / sqrt(kappa(20, 0.9)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fedadmw", "did you mean 'fedadamw'"),
        ("fedlion", "theory has no learning rate for it; use one of fedadamw, local-adamw"),
        ("fedadamw:align=cautious", "alignment that depends on the updates"),
        ("fedadamw:memory", "give NAME:SETTING=VALUE"),
        ("fedadamw:memry=1", "did you mean 'memory'"),
        ("fedadamw:memory=-1", "must not be negative"),
        ("fedadamw:alpha=1", "alignment never ends"),
        ("fedadamw:share=vm", "an m that is carried"),
        ("fedadamw:share=[", "--algorithm share"),
    ],
)
def test_a_method_that_cannot_be_measured_is_refused_in_one_line(text, says):
    with pytest.raises(InputError, match=says) as refused:
        parse_method(text)
    assert "\n" not in str(refused.value)
