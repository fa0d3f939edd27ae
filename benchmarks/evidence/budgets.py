"""Scores at equal local steps, equal bytes sent up and equal time, from the record.

A method that sends twice the bytes of another gets half of its rounds for the same bytes, and what it has reached by
then. Curves fall short at a cut, since learning rates were planned for whole runs.
"""

from collections.abc import Mapping
from statistics import mean
from typing import Any, Literal, NamedTuple

Measure = Literal["steps", "bytes", "time"]
MEASURES: tuple[Measure, ...] = ("steps", "bytes", "time")
EQUAL = 1.05  # times a budget may be spent: a few bytes or seconds more are no other cost
TITLES = {"steps": "local steps of all clients", "bytes": "MB sent up by all clients", "time": "processor seconds"}


class Costs(NamedTuple):
    """What a variant's whole run costs."""

    steps: float
    bytes: float  # MB up, all clients
    time: float  # processor seconds, evaluations included; elapsed ones of runs that were stopped and went on


def costs_of(workload: Mapping[str, Any], variant: Mapping[str, Any]) -> Costs:
    """Return what a whole run of a variant costs; it has at least one run that did not diverge."""
    whole = [run for run in variant["runs"] if not run["error"]]
    clients = workload["rounds"] * workload["clients"]
    measured = [run["cpu_s"] for run in whole if run["cpu_s"]] or [run["wall_s"] for run in whole]
    return Costs(clients * workload["steps"], clients * variant["up_bytes_a_client"] / 1e6, mean(measured))


def budget_of(costs: Mapping[str, Costs], measure: Measure) -> float:
    """Return the budget at which variants are compared: the least that a whole run of one costs."""
    return min(getattr(cost, measure) for cost in costs.values())


def scores_at(workload: Mapping[str, Any], variant: Mapping[str, Any], cost: float, budget: float) -> dict[int, float]:
    """Return the score by seed, in points, of the last evaluation within `budget`, if a whole run costs `cost`.

    A seed without an evaluation within the budget, or whose score is not finite there, is left out.
    """
    within = [i for i, round_ in enumerate(workload["round"]) if round_ / workload["rounds"] * cost <= budget * EQUAL]
    runs = [run for run in variant["runs"] if not run["error"] and within]
    found = {run["seed"]: run["score"][within[-1]] for run in runs}
    return {seed: 100 * score for seed, score in found.items() if score is not None}


def curve(workload: Mapping[str, Any], variant: Mapping[str, Any], cost: float) -> list[tuple[float, float]]:
    """Return (cost so far, mean score) at each evaluation of all runs that did not diverge."""
    whole = [run["score"] for run in variant["runs"] if not run["error"]]
    columns = zip(workload["round"], zip(*whole, strict=True), strict=True)
    found = [(round_ / workload["rounds"] * cost, column) for round_, column in columns]
    return [(x, mean(column)) for x, column in found if None not in column]
