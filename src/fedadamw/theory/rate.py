"""Measures convergence against the number of clients, local steps and rounds, and compares the slopes with theory."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from fedadamw.theory.methods import Method
from fedadamw.theory.prediction import Point, Quadratic, predict
from fedadamw.theory.progress import Progress
from fedadamw.theory.quadratic import Draws, Noise, make_blocks, simulate

AXES = {"clients": "S", "steps": "K", "rounds": "R"}  # field of Point -> the theorem's letter
CENTER = Point(clients=8, steps=20, rounds=400)
VALUES = {"clients": (2, 8, 32), "steps": (5, 20, 80), "rounds": (100, 400, 1600)}  # on each axis, through the center
SEEDS = 8
Values = Mapping[str, Sequence[int]]
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
    error: float  # its standard error, by leaving out each seed in turn


class Rate(TypedDict):
    """What `fedadamw theory rate` writes as JSON."""

    noise: str
    problem: dict[str, Any]
    beta1: float  # of the line P: that of the first algorithm
    points: list[Measured]
    slopes: list[Slope]
    wall_s: float


def grid(values: Values = VALUES, center: Point = CENTER) -> list[Point]:
    """Return the points of all axes, each once."""
    points = [center._replace(**{axis: value}) for axis, axis_values in values.items() for value in axis_values]
    return list(dict.fromkeys(points))


def measure_rate(
    methods: Sequence[Method],
    noise: Noise,
    *,
    seeds: int = SEEDS,
    values: Values = VALUES,
    center: Point = CENTER,
    quiet: bool = True,
) -> Rate:
    """Run every method at every point of the grid, and fit a slope along each axis."""
    begin, problem, places = time.perf_counter(), Quadratic(), grid(values, center)
    points = []
    with Progress(len(methods) * sum(_work(place) for place in places), quiet=quiet) as progress:
        for method in methods:
            for stream, place in enumerate(places):
                draws = Draws.of(problem, noise, seeds, stream)
                points.append(_measure(method, draws, place, progress))
            progress.end_part(method.label)
    slopes = [
        Slope(algorithm=method.label, axis=axis, slope=fit_slope(chosen, axis), error=_error(chosen, axis))
        for method in methods
        for axis in values
        for chosen in [along(points, method.label, axis, center)]
    ]
    seconds, beta1 = round(time.perf_counter() - begin, 1), methods[0].beta1
    return Rate(noise=noise, problem=problem._asdict(), beta1=beta1, points=points, slopes=slopes, wall_s=seconds)


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


def along(points: Sequence[Measured], algorithm: str, axis: str, center: Point = CENTER) -> list[Measured]:
    """Return an algorithm's points on one axis: those that differ from the center in nothing else, in order."""
    others = {key: value for key, value in center._asdict().items() if key != axis}
    own: list[Any] = [p for p in points if p["algorithm"] == algorithm]
    return sorted((p for p in own if all(p[k] == v for k, v in others.items())), key=lambda p: int(p[axis]))


def fit_slope(points: Sequence[Measured], axis: str, without: int | None = None) -> float:
    """Return the slope of log measured against log of the axis by least squares, maybe without one seed."""
    rows: Any = points
    x = np.log([row[axis] for row in rows])
    seeds = np.array([row["seeds"] for row in rows])  # (points, seeds)
    y = np.log((seeds if without is None else np.delete(seeds, without, axis=1)).mean(1))
    return float(np.polyfit(x, y, 1)[0])


def _error(points: Sequence[Measured], axis: str) -> float:
    """Return the jackknife's standard error of a slope; 0 with one seed."""
    n = len(points[0]["seeds"])
    if n < 2:
        return 0.0
    slopes = np.array([fit_slope(points, axis, seed) for seed in range(n)])
    return float(np.sqrt((n - 1) / n * ((slopes - slopes.mean()) ** 2).sum()))
