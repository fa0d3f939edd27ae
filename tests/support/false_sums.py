"""Replies to `evaluate` that no honest node sends, and why they are refused."""

import numpy as np
from flwr.app import Array


def sums_of(change):
    """Return a lie that replaces the sums (samples, loss, right) by change(sums)."""

    def lie(arrays, numbers):
        arrays["sums"] = Array(change(arrays["sums"].numpy().copy()))

    return lie


def with_number(place, value):
    def change(sums):
        sums[place] = value(sums) if callable(value) else value
        return sums

    return sums_of(change)


LIES = {
    "nan": (with_number(1, np.nan), "not-finite"),
    "infinite": (with_number(1, np.inf), "not-finite"),
    "negative-count": (with_number(2, -1.0), "sums"),
    "fraction": (with_number(2, 0.5), "sums"),
    "more-right": (with_number(2, lambda sums: sums[0] + 1), "sums"),
    "negative-loss": (with_number(1, -1.0), "sums"),
    "large-loss": (with_number(1, 1e9), "too-long"),
    "huge-loss": (with_number(1, 1e300), "too-long"),
    "more-samples": (with_number(0, lambda sums: sums[0] + 1), "samples"),
    "no-samples": (with_number(0, 0.0), "samples"),
    "shape": (sums_of(lambda sums: sums[:-1]), "sums"),
    "empty": (sums_of(lambda sums: sums[:0]), "wrong-shape"),
    "matrix": (sums_of(lambda sums: sums[None]), "wrong-shape"),
    "dtype": (sums_of(lambda sums: sums.astype(np.float32)), "wrong-dtype"),
    "huge": (sums_of(lambda sums: np.zeros(10**6)), "wrong-shape"),
    "missing": (lambda arrays, _: arrays.clear(), "records"),
    "other": (lambda arrays, _: arrays.update(other=arrays.pop("sums")), "missing-array"),
    "extra": (lambda arrays, _: arrays.update(more=arrays["sums"]), "extra-array"),
    "number": (lambda _, numbers: numbers.update(loss=0.1), "records"),
    "unknown-number": (lambda _, numbers: numbers.update(accuracy=1.0), "records"),
    "other-client": (lambda _, numbers: numbers.update(client=1), "other-client"),
}
