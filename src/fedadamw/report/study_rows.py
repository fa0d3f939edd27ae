"""Points of a study's charts: means over seeds with their 95% intervals, and the seeds' own values."""

import statistics
from collections.abc import Iterable, Sequence
from math import inf
from typing import Literal

from fedadamw.report.intervals import mean_interval
from fedadamw.report.metrics import value_range
from fedadamw.report.study_files import Results, Row, RunResult

Curve = Literal["score", "train_loss", "test_loss"]
LOGARITHMIC = {"v_variance"}  # what is drawn on a logarithmic axis
METHODS = {"t": "Student t", "bootstrap": "bootstrap"}


def runs_by_variant(runs: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Return the runs of each variant, one per seed, in their order."""
    groups: dict[str, list[RunResult]] = {}
    for result in runs:
        groups.setdefault(result["variant"], []).append(result)
    return groups


def variant_names(results: Results) -> list[str]:
    """Return the variants with results, in the order of the study."""
    return list(runs_by_variant(results["runs"]))


def align(group: Sequence[RunResult]) -> list[tuple[int, list[int]]]:
    """Return the rounds that all runs of a variant evaluated, each with its place in the columns of each run.

    They may end in different rounds, by a budget of privacy.
    """
    places = [{round_: i for i, round_ in enumerate(result["round"])} for result in group]
    return [(round_, [of[round_] for of in places]) for round_ in places[0] if all(round_ in of for of in places)]


def curve_rows(results: Results, what: Curve) -> list[Row]:
    """Return `what` by evaluated round and bytes sent: of each variant a mean with its band, and of each seed.

    Where a seed's number was not finite there is no mean: that of the others would look better than the variant is.
    """
    limits = value_range(results["metric"]) if what == "score" else (0.0, inf)
    rows: list[Row] = []
    for variant, group in runs_by_variant(results["runs"]).items():
        for round_, places in align(group):
            point: Row = {"variant": variant, "round": round_, "sent": group[0]["sent_bytes"][places[0]] / 1e6}
            found = {result["seed"]: result[what][i] for result, i in zip(group, places, strict=True)}
            values = {seed: value for seed, value in found.items() if value is not None}
            if len(values) == len(group):
                rows += rows_of_point(point, what, values, limits)
            else:
                rows += [{**point, what: value, "seed": seed} for seed, value in values.items()]
    return rows


def diagnostic_rows(results: Results, key: str) -> list[Row]:
    """Return one diagnostic by round: its mean over the seeds that have it, with its band, and of each seed."""
    limits = (-1.0, 1.0) if key == "cosine" else (0.0, inf)
    rows: list[Row] = []
    for variant, group in runs_by_variant(results["runs"]).items():
        for i in range(min(len(result["diagnostics"]) for result in group)):
            found = {result["seed"]: result["diagnostics"][i].get(key) for result in group}
            values = {seed: value for seed, value in found.items() if value is not None}
            point: Row = {"variant": variant, "round": group[0]["diagnostics"][i]["round"]}
            rows += rows_of_point(point, key, values, limits)
    return rows


def kind_rows(results: Results, key: str) -> list[Row]:
    """Return one diagnostic by kind of block, its mean over rounds and seeds."""
    rows: list[Row] = []
    for variant, group in runs_by_variant(results["runs"]).items():
        values: dict[str, list[float]] = {}
        for record in (record for result in group for record in result["diagnostics"]):
            for kind, value in (record.get(f"{key}_by_kind") or {}).items():
                if value is not None:
                    values.setdefault(kind, []).append(value)
        rows += [{"variant": variant, "kind": kind, key: statistics.mean(v)} for kind, v in values.items()]
    return rows


def final_rows(results: Results) -> list[Row]:
    """Return the final scores: of each variant the mean with its interval, and of each seed."""
    limits = value_range(results["metric"])
    rows: list[Row] = []
    for variant, group in runs_by_variant(results["runs"]).items():
        finals = {result["seed"]: result["score"][-1] for result in group}
        values = {seed: value for seed, value in finals.items() if value is not None}
        if len(values) == len(group):  # the mean of the other seeds would be biased
            rows += rows_of_point({"variant": variant}, "score", values, limits)
    return rows


def rows_of_point(point: Row, what: str, values: dict[int, float], limits: tuple[float, float]) -> list[Row]:
    """Return a row with the mean of the seeds' values, its interval cut at the limits, and a row for each seed.

    One seed has no interval, and no row of its own.
    """
    if not values:
        return []
    mean = statistics.mean(values.values())
    found = mean_interval(list(values.values()))
    if found is None:
        return [{**point, what: mean}]
    least, greatest = (min(values.values()) / 2, inf) if what in LOGARITHMIC else limits
    form = ".2%" if what == "score" else ".4g"
    text = f"{found.low:{form}} to {found.high:{form}} ({METHODS[found.method]}, {len(values)} seeds)"
    ends: Row = {"low": max(found.low, least), "high": min(found.high, greatest), "interval": text}
    return [{**point, what: mean, **ends}, *({**point, what: value, "seed": seed} for seed, value in values.items())]


def value_domain(rows: Sequence[Row], what: str, limits: tuple[float, float]) -> tuple[float, float] | None:
    """Return the ends of an axis for `what`: all values, and of the bands at most three tenths more either side.

    Bands of two or three seeds may be many times as wide as the curves are high, which would make these flat.
    """
    values = [float(row[what]) for row in rows]
    if not values or min(values) == max(values):
        return None
    room = 0.3 * (max(values) - min(values))
    low = min([*values, *(float(row["low"]) for row in rows if "low" in row)])
    high = max([*values, *(float(row["high"]) for row in rows if "high" in row)])
    return max(low, min(values) - room, limits[0]), min(high, max(values) + room, limits[1])
