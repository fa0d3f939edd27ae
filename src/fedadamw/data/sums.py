"""Loss and metrics from sums over samples, which add up over the parts of a set: what a client may tell of its data.

Each kind has three functions. `of` sums the outputs of samples, `pool` computes loss and metrics from added sums,
`check` raises InputError for sums that no samples can have. The first sum is the number of samples, the second that of
their losses.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.task import Evaluation
from fedadamw.validation import check

LEAST_LOSS = 0.69  # of a wrong prediction: at least log 2, since its class is no less likely than the right one
ROUNDING = 1e-6  # relative, of sums of float32 numbers
EPSILON = 2.0**-52
MAX_EXPONENT = 700.0  # of a perplexity that is not yet infinite


class Kind(Protocol):
    """What is summed, and how loss and metrics follow."""

    @property
    def unpooled(self) -> tuple[str, ...]:
        """The metrics that cannot be computed from sums."""

    def of(self, outputs: Tensor) -> Tensor:
        """Return the sums (k,) of the outputs (n, c) of some samples, float64 on the CPU."""

    def pool(self, sums: Tensor) -> Evaluation:
        """Compute loss and metrics from sums (k,)."""

    def check(self, sums: Tensor, most: int | None) -> None:
        """Raise InputError if no samples, at most `most`, have these sums (k,)."""


class Pooled:
    """The part of a task that its kind of sums gives."""

    kind: Kind

    @property
    def unpooled(self) -> tuple[str, ...]:
        """The metrics that cannot be computed from sums."""
        return self.kind.unpooled

    def sums(self, outputs: Tensor) -> Tensor:
        """Return sums over samples with these outputs (n, c) that add up, (k,) float64 on the CPU."""
        return self.kind.of(outputs)

    def pool(self, sums: Tensor) -> Evaluation:
        """Compute loss and metrics from (added) sums."""
        return self.kind.pool(sums)

    def check_sums(self, sums: Tensor, most: int | None) -> None:
        """Raise InputError if no samples, at most `most`, have these sums."""
        self.kind.check(sums, most)


class Losses(NamedTuple):
    """Losses alone, of outputs whose first column has them: [samples, loss]. unpooled: metrics that are not sums."""

    unpooled: tuple[str, ...] = ()

    def of(self, outputs: Tensor) -> Tensor:
        return count_and_add(outputs[:, :1])

    def pool(self, sums: Tensor) -> Evaluation:
        samples, loss = sums.tolist()
        return Evaluation(loss / samples, {})

    def check(self, sums: Tensor, most: int | None) -> None:
        check_numbers(sums, 2, most, counts=())


class Hits(NamedTuple):
    """Accuracy, of outputs (loss, whether right): [samples, loss, right]."""

    unpooled: tuple[str, ...] = ()

    def of(self, outputs: Tensor) -> Tensor:
        return count_and_add(outputs)

    def pool(self, sums: Tensor) -> Evaluation:
        samples, loss, right = sums.tolist()
        return Evaluation(loss / samples, {"accuracy": right / samples})

    def check(self, sums: Tensor, most: int | None) -> None:
        samples, loss, right = check_numbers(sums, 3, most, counts=(2,))
        check(right <= samples, f"sums: {right:,.0f} right predictions of {samples:,.0f} samples")
        _check_loss(loss, wrong=samples - right)


class Classes(NamedTuple):
    """Accuracy, F1 and Matthews, of outputs (loss, label, prediction): [samples, loss, three counts of each class].

    The counts are the confusion matrix's diagonal (right), sums of rows (labels) and of columns (predictions), each for
    all classes: less than the matrix, and all that these metrics need. metrics: their names, the main one first.
    """

    metrics: tuple[str, ...]
    classes: int
    unpooled: tuple[str, ...] = ()

    def of(self, outputs: Tensor) -> Tensor:
        own = outputs.cpu()
        labels, predicted = own[:, 1].long(), own[:, 2].long()
        one = torch.ones(len(own), dtype=torch.float64)
        kinds = ((labels, (labels == predicted).double()), (labels, one), (predicted, one))
        counts = (one.new_zeros(self.classes).index_add(0, classes, weights) for classes, weights in kinds)
        return torch.cat([count_and_add(own[:, :1]), *counts])

    def pool(self, sums: Tensor) -> Evaluation:
        samples, right, labels, predicted = float(sums[0]), *sums[2:].view(3, self.classes)
        values = {
            "accuracy": lambda: float(right.sum()) / samples,
            "f1": lambda: _f1(right, labels, predicted),
            "matthews": lambda: _matthews(samples, right, labels, predicted),
        }
        return Evaluation(float(sums[1]) / samples, {name: values[name]() for name in self.metrics})

    def check(self, sums: Tensor, most: int | None) -> None:
        width = 2 + 3 * self.classes
        samples, loss, *_ = check_numbers(sums, width, most, counts=range(2, width))
        right, labels, predicted = sums[2:].view(3, self.classes)
        for what, counts in (("labels", labels), ("predictions", predicted)):
            total = float(counts.sum())
            check(total == samples, f"sums: {total:,.0f} {what} of {samples:,.0f} samples")
        wrong = samples - float(right.sum())
        more = bool((right > torch.minimum(labels, predicted)).any())
        check(not more, "sums: more right predictions of a class than its labels or predictions")
        apart = bool((labels + predicted - 2 * right > wrong).any())
        check(not apart, "sums: labels and predictions of a class that no confusion matrix has")
        _check_loss(loss, wrong=wrong)


class Numbers(NamedTuple):
    """Pearson's correlation, of outputs (squared error, label, prediction): [samples, loss, y, p, y^2, p^2, y p].

    y and p are labels and predictions minus `centre`, a constant near them, so that few digits cancel.
    """

    metrics: tuple[str, ...]
    centre: float = 0.0

    @property
    def unpooled(self) -> tuple[str, ...]:
        return tuple(name for name in self.metrics if name != "pearson")

    def of(self, outputs: Tensor) -> Tensor:
        loss, labels, predicted = outputs.cpu().double().T
        y, p = labels - self.centre, predicted - self.centre
        return count_and_add(torch.stack([loss, y, p, y * y, p * p, y * p], 1))

    def pool(self, sums: Tensor) -> Evaluation:
        samples, loss, *_ = sums.tolist()
        known = {"pearson": _pearson(sums)} if "pearson" in self.metrics else {}
        return Evaluation(loss / samples, known)

    def check(self, sums: Tensor, most: int | None) -> None:
        samples, loss, y, p, yy, pp, yp = check_numbers(sums, 7, most, counts=())
        _check_loss(loss)
        own, theirs, both = (square - a * b / samples for square, a, b in ((yy, y, y), (pp, p, p), (yp, y, p)))
        slack = ROUNDING * (yy + pp)
        possible = own >= -slack and theirs >= -slack and both**2 <= (own + slack) * (theirs + slack)
        check(possible, "sums: no labels and predictions have these means and squares")
        check(
            abs(yy + pp - 2 * yp - loss) <= 1e3 * slack + ROUNDING, "sums: the loss is not the squared error of these"
        )


class Tokens(NamedTuple):
    """Loss per token, accuracy and perplexity, of outputs (loss, tokens, right) of texts: [samples, and their sums].

    longest: tokens of a text, at most.
    """

    longest: int
    unpooled: tuple[str, ...] = ()

    def of(self, outputs: Tensor) -> Tensor:
        return count_and_add(outputs)

    def pool(self, sums: Tensor) -> Evaluation:
        _, loss, tokens, right = sums.tolist()
        return score_tokens(loss, tokens, right)

    def check(self, sums: Tensor, most: int | None) -> None:
        samples, loss, tokens, right = check_numbers(sums, 4, most, counts=(2, 3))
        many = f"sums: {tokens:,.0f} tokens in {samples:,.0f} texts, which have {self.longest:,} at most"
        check(tokens <= self.longest * samples, many)
        check(right <= tokens, f"sums: {right:,.0f} right predictions of {tokens:,.0f} tokens")
        _check_loss(loss)


def count_and_add(columns: Tensor) -> Tensor:
    """Return the number of rows, and the sum of each column of (n, c), as (1 + c,) float64 on the CPU."""
    sums = columns.double().sum(0).cpu()
    return torch.cat([sums.new_tensor([float(len(columns))]), sums])


def score_tokens(loss: float, tokens: float, right: float) -> Evaluation:
    """Return the mean loss per token, the share of correct predictions, and perplexity."""
    mean = loss / max(tokens, 1)
    return Evaluation(mean, {"accuracy": right / max(tokens, 1), "perplexity": math.exp(min(mean, MAX_EXPONENT))})


def check_numbers(sums: Tensor, width: int, most: int | None, counts: Sequence[int]) -> list[float]:
    """Return the sums as numbers; InputError unless they are `width` finite ones, the first and `counts` whole.

    most: samples there may be, at most.
    """
    check(sums.shape == (width,) and sums.dtype == torch.float64, f"sums: {_describe(sums)}, not {width} float64")
    check(bool(sums.isfinite().all()), "sums: a number is not finite")
    numbers: list[float] = sums.tolist()
    for i in (0, *counts):
        check(numbers[i] >= 0 and numbers[i].is_integer(), f"sums: {numbers[i]:g} is no count")
    check(numbers[0] >= 1, "sums: of no sample")
    check(most is None or numbers[0] <= most, f"sums: of {numbers[0]:,.0f} samples; at most {most} are there")
    return numbers


def _describe(sums: Tensor) -> str:
    return f"{tuple(sums.shape)} {str(sums.dtype).removeprefix('torch.')}"


def _check_loss(loss: float, wrong: float = 0.0) -> None:
    """Raise InputError if the sum of losses is negative, or too small for so many wrong predictions."""
    check(loss >= 0, f"sums: the loss is {loss:g}, below 0")
    check(loss >= LEAST_LOSS * wrong, f"sums: a loss of {loss:g} is too small for {wrong:,.0f} wrong predictions")


def _f1(right: Tensor, labels: Tensor, predicted: Tensor) -> float:
    """Return the F1 of class 1 of two, else the mean over the classes that there are, as scikit-learn's."""
    both = labels + predicted
    if len(both) == 2:
        return float(2 * right[1] / both[1]) if both[1] else 0.0
    there = both > 0
    return float((2 * right[there] / both[there]).mean())


def _matthews(samples: float, right: Tensor, labels: Tensor, predicted: Tensor) -> float:
    """Return the correlation of classes, 0 if it is not defined, as scikit-learn's."""
    covariance = float(right.sum()) * samples - float(labels @ predicted)
    spread = (samples**2 - float(labels @ labels)) * (samples**2 - float(predicted @ predicted))
    return covariance / math.sqrt(spread) if spread > 0 else 0.0


def _pearson(sums: Tensor) -> float:
    """Return the correlation, 0 if labels or predictions are constant: up to rounding, which their sums have."""
    samples, _, y, p, yy, pp, yp = map(float, sums)
    own, theirs = yy - y * y / samples, pp - p * p / samples
    least = 4 * samples * EPSILON
    if own <= least * yy or theirs <= least * pp:
        return 0.0
    found = (yp - y * p / samples) / (math.sqrt(own) * math.sqrt(theirs))
    return math.copysign(1.0, found) if abs(found) > 1 else found
