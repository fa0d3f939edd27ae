"""client_scores.jsonl: each client's scores on its own held-out samples, by evaluation, and how far they spread."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedadamw.report.metrics import TUNED
from fedadamw.report.run_files import ScoresDict

NAME = "client_scores.jsonl"
NO_SCORES = ("round", "clients", "samples")  # what a line has besides a list for each metric


class Evaluated(NamedTuple):
    """One evaluation of clients, a line of the file; all arrays are (n,), NaN for what is not known or not finite."""

    round: int
    clients: np.ndarray  # their numbers
    samples: np.ndarray  # held out
    metrics: Mapping[str, np.ndarray]  # `loss` and each metric by name

    @property
    def main(self) -> str:
        """The main metric: the first one that is not the loss, if there is one."""
        return next((name for name in self.metrics if name != "loss" and not name.startswith(TUNED)), "loss")

    @property
    def tuned(self) -> np.ndarray | None:
        """The main metric of each client after the model was tuned for it, (n,); None if it was not."""
        return self.metrics.get(f"{TUNED}{self.main}")

    @property
    def scores(self) -> np.ndarray:
        """The main metric of each client, (n,)."""
        return self.metrics[self.main]

    def worst_first(self) -> np.ndarray:
        """The places of the clients with a finite score, worst first, (m,)."""
        order = np.argsort(self.scores if self.main != "loss" else -self.scores, kind="stable")
        finite: np.ndarray = order[np.isfinite(self.scores[order])]
        return finite


class Spread(NamedTuple):
    """How the clients' scores are distributed in one evaluation."""

    worst: float  # mean of the worst tenth, at least one client
    quarter: float
    median: float
    three_quarters: float
    best: float  # mean of the best tenth
    mean: float


def read_lines(path: Path) -> list[ScoresDict]:
    """Return the lines of client_scores.jsonl; none if it is missing. Damaged lines are left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [line for line in map(_parse, lines) if line is not None]


def _parse(text: bytes) -> ScoresDict | None:
    try:
        line = json.loads(text)
        columns = [values for name, values in line.items() if name != "round"]
        lists = all(isinstance(values, list) for values in columns) and len(set(map(len, columns))) == 1
        numbered = type(line["round"]) is int and line["round"] > 0
        whole = numbered and lists and {"clients", "samples", "loss"} <= line.keys()
        return dict(line) if whole else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def read_scores(path: Path, *, rounds: int | None = None) -> list[Evaluated]:
    """Return the evaluations in a file, up to round `rounds`; none if it is missing. Damaged lines are left out."""
    lines = (line for line in read_lines(path) if rounds is None or line["round"] <= rounds)
    return [found for found in map(_to_arrays, lines) if found is not None]


def _to_arrays(line: ScoresDict) -> Evaluated | None:
    try:
        metrics = {str(name): _numbers(values) for name, values in line.items() if name not in NO_SCORES}
        _numbers(line["clients"])
        clients = np.array(line["clients"], dtype=np.int64)
        return Evaluated(line["round"], clients, _numbers(line["samples"]), metrics) if len(clients) else None
    except (ValueError, TypeError, OverflowError):
        return None


def _numbers(values: Any) -> np.ndarray:
    """Return a list of numbers (n,) with NaN for None; ValueError for nested lists."""
    numbers = np.array(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError("not a list of numbers")
    return numbers


def spread(found: Evaluated) -> Spread | None:
    """Return how an evaluation's scores are distributed; None if none is finite."""
    scores = found.scores[found.worst_first()]
    if not len(scores):
        return None
    tenth = -(-len(scores) // 10)
    shares = (0.25, 0.5, 0.75) if found.main != "loss" else (0.75, 0.5, 0.25)
    quarter, median, three_quarters = np.quantile(scores, shares).tolist()
    worst, best = float(scores[:tenth].mean()), float(scores[-tenth:].mean())
    return Spread(worst, quarter, median, three_quarters, best, float(scores.mean()))


def choose_evenly(count: int, most: int) -> Sequence[int]:
    """Return at most `most` of the places 0 to count - 1, evenly spaced, with the first and the last."""
    return range(count) if count <= most else [round(k) for k in np.linspace(0, count - 1, most)]
