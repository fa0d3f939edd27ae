"""Measures convergence against the number of clients, local steps and rounds, and compares the slopes with theory."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fedadamw.theory.methods import Method
from fedadamw.theory.prediction import Point, Quadratic, predict
from fedadamw.theory.progress import Progress
from fedadamw.theory.quadratic import Draws, Noise, make_blocks, simulate
from fedadamw.validation import check, shorten

AXES = {"clients": "S", "steps": "K", "rounds": "R"}  # field of Point -> the theorem's letter
SEEDS = 8
CLIENTS_AS_LONG_AS_A_STEP = 16  # that add as much time to a step as it takes without them


class Measured(TypedDict):
    """One algorithm at one point."""

    algorithm: str
    clients: int
    steps: int
    rounds: int
    lr: float
    predicted: float  # P
    measured: float  # mean over the seeds
    ratio: float  # measured / P
    seeds: list[float]


class Slope(TypedDict):
    """How fast one algorithm converges along one axis: the exponent, -1/2 in theory."""

    algorithm: str
    axis: str
    slope: float
    error: float | None  # its standard error, by leaving out each seed in turn; None with one seed


class Rate(TypedDict):
    """What `fedadamw theory rate` writes as JSON."""

    noise: str
    problem: dict[str, Any]
    axes: dict[str, list[int]]  # the values of each
    beta1: float  # of the line P: that of the first algorithm
    points: list[Measured]
    slopes: list[Slope]
    wall_s: float


class Grid(NamedTuple):
    """The values on each axis, ascending; the other two then have their middle values."""

    clients: Sequence[int] = (2, 8, 32)
    steps: Sequence[int] = (5, 20, 80)
    rounds: Sequence[int] = (100, 400, 1600)

    @property
    def center(self) -> Point:
        """The point in which all axes meet."""
        return Point(*(values[len(values) // 2] for values in self))

    def along(self, axis: str) -> list[Point]:
        """Return the points of an axis."""
        return [self.center._replace(**{axis: value}) for value in getattr(self, axis)]

    def points(self) -> list[Point]:
        """Return the points of all axes, each once."""
        return list(dict.fromkeys(point for axis in AXES for point in self.along(axis)))


DEFAULT_GRID = Grid()


def measure_rate(
    methods: Sequence[Method], noise: Noise, grid: Grid = DEFAULT_GRID, *, seeds: int = SEEDS, quiet: bool = True
) -> Rate:
    """Run every method at every point of the grid, and fit a slope along each axis."""
    begin, problem, points = time.perf_counter(), Quadratic(), list[Measured]()
    with Progress(len(methods) * sum(map(_work, grid.points())), quiet=quiet) as progress:
        for method in methods:
            for stream, place in enumerate(grid.points()):
                points.append(_measure(method, Draws.of(problem, noise, seeds, stream), place, progress))
            progress.end_part(method.label)
    slopes = [
        Slope(algorithm=method.label, axis=axis, slope=fit_slope(chosen, axis), error=_error(chosen, axis))
        for method in methods
        for axis in AXES
        for chosen in [along(points, method.label, grid, axis)]
    ]
    return Rate(
        noise=noise,
        problem=problem._asdict(),
        axes={axis: list(values) for axis, values in grid._asdict().items()},
        beta1=methods[0].beta1,
        points=points,
        slopes=slopes,
        wall_s=round(time.perf_counter() - begin, 1),
    )


def _work(point: Point) -> float:
    """How long a point takes, in local steps of few clients."""
    return point.rounds * point.steps * (1 + point.clients / CLIENTS_AS_LONG_AS_A_STEP)


def _measure(method: Method, draws: Draws, point: Point, progress: Progress) -> Measured:
    problem = draws.problem
    lr, expected = method.lr(problem, point), predict(problem, point, method.beta1)
    status = f"{method.label}  S={point.clients} K={point.steps} R={point.rounds}"
    work = _work(point) / point.rounds
    algorithm = method.make(make_blocks(problem))
    found = simulate(algorithm, lr, point, draws, after_round=lambda: progress.advance(work, status)).tolist()
    mean = float(np.mean(found))
    return Measured(
        algorithm=method.label,
        clients=point.clients,
        steps=point.steps,
        rounds=point.rounds,
        lr=lr,
        predicted=expected,
        measured=mean,
        ratio=mean / expected,
        seeds=found,
    )


def along(points: Sequence[Measured], algorithm: str, grid: Grid, axis: str) -> list[Measured]:
    """Return an algorithm's points on one axis, in order."""
    own = {Point(p["clients"], p["steps"], p["rounds"]): p for p in points if p["algorithm"] == algorithm}
    return [own[point] for point in grid.along(axis)]


def fit_slope(points: Sequence[Measured], axis: str, without: int | None = None) -> float:
    """Return the slope of log measured against log of the axis by least squares, maybe without one seed."""
    rows: Any = points
    x = np.log([row[axis] for row in rows])
    seeds = np.array([row["seeds"] for row in rows])  # (points, seeds)
    y = np.log((seeds if without is None else np.delete(seeds, without, axis=1)).mean(1))
    return float(np.polyfit(x, y, 1)[0])


def parse_values(option: str, text: str) -> list[int]:
    """Return the values in a list with commas; raises InputError unless they ascend from 1 or above."""
    try:
        values = [int(value) for value in text.split(",")]
    except ValueError:
        values = []
    good = len(values) > 1 and values[0] > 0 and values == sorted(set(values))
    check(good, f"{option} {shorten(text)}: give two or more whole numbers that ascend, such as 2,8,32")
    return values


def _error(points: Sequence[Measured], axis: str) -> float | None:
    """Return the jackknife's standard error of a slope; None with one seed."""
    n = len(points[0]["seeds"])
    if n < 2:
        return None
    slopes = np.array([fit_slope(points, axis, seed) for seed in range(n)])
    return float(np.sqrt((n - 1) / n * ((slopes - slopes.mean()) ** 2).sum()))
