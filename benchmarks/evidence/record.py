"""The record in benchmarks/results: everything that pages are made of, from the runs that have ended."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common import records
from benchmarks.evidence import rule
from benchmarks.evidence.agenda import Agenda, variants_of
from benchmarks.evidence.costs import expected_seeds
from benchmarks.evidence.store import Result, Store, points
from benchmarks.evidence.variants import BASE, CANDIDATE, CHOSEN_ON, LOOKED_AT, MAIN, VARIANTS
from benchmarks.evidence.workloads import WORKLOADS, Workload
from fedadamw.checkpoint import write_atomically
from fedadamw.validation import check

WHAT, DEVICE = "evidence", "cpu"
LINE = 600  # characters
KEPT = ("seed", "error", "score", "train_loss", "wall_s", "cpu_s", "commit")  # of a reported run


def write_record(store: Store, *, record: bool) -> Path:
    """Write this month's record, or the scratch one, and return where it is.

    Raises InputError if there are no results to take the place of those in a committed record.
    """
    path, newest = records.path_of(WHAT, DEVICE, record=record), records.read_newest(WHAT, DEVICE)
    lost = record and bool(newest and newest["workloads"]) and not store.refresh().results
    check(not lost, f"{store.folder} has no results, and the committed record has some: give their folder (--out)")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{to_text(content(store))}\n".encode())
    return path


def content(store: Store) -> dict[str, Any]:
    """Return the record of the results in a store."""
    results = store.refresh().results
    agenda = Agenda({job: points(result) for job, result in results.items()})
    used = [w for w in agenda.workloads if any(job.workload == w.name for job in results)]
    return {
        "device": _distinct(result["device"] for result in results.values()),
        "versions": _versions(list(results.values())),
        **head(),
        "workloads": [_workload(agenda, store, workload) for workload in used],
        "not_begun": [name for name in WORKLOADS if name not in {w.name for w in used}],
    }


def head() -> dict[str, Any]:
    """Return what is fixed beforehand: the variants that are tested, and the rules."""
    return {
        "base": BASE,
        "candidate": CANDIDATE,
        "chosen_on": list(CHOSEN_ON),
        "looked_at": list(LOOKED_AT),
        "main": list(MAIN),
        "rule": {
            "fewest": rule.FEWEST,
            "most": rule.MOST,
            "width": rule.WIDTH,
            "tail": rule.TAIL,
            "margin": rule.MARGIN,
            "first_seed": rule.FIRST_SEED,
            "tuning_seeds": list(rule.TUNING_SEEDS),
            "close": rule.CLOSE,
        },
    }


def _workload(agenda: Agenda, store: Store, workload: Workload) -> dict[str, Any]:
    """Return a workload's part: its variants with their trials and runs."""
    some = [result for job, result in store.results.items() if job.workload == workload.name and not result["error"]]
    first: Result | None = some[0] if some else None
    shared = ("metric", "rounds", "round", "clients", "steps")
    return {
        "name": workload.name,
        "title": workload.title,
        "recipe": workload.recipe,
        "settings": list(workload.settings),
        **({key: first[key] for key in shared} if first else {}),  # type: ignore[literal-required]
        "variants": [_variant(agenda, store, workload, name) for name in variants_of(workload)],
    }


def _variant(agenda: Agenda, store: Store, workload: Workload, name: str) -> dict[str, Any]:
    """Return a variant's part: trials, runs, and the seeds that the rule wants."""
    tried = agenda.tried(workload, name)
    runs = [store.results[job] for job in agenda.reported(workload, name).values()]
    lr = agenda.rate(workload, name)
    wanted = agenda.count_wanted(workload, name, rule.MOST) if lr is not None else rule.FEWEST
    size = {key: runs[0][key] for key in ("up_bytes_a_client", "down_bytes_a_client")} if runs else {}  # type: ignore[literal-required]
    return {
        "name": name,
        "algorithm": VARIANTS[name].algorithm,
        "settings": list(VARIANTS[name].settings),
        "lr": lr,
        "trials": [[rate, seed, None if score is None else round(score, 3)] for (rate, seed), score in tried.items()],
        "seeds_wanted": wanted,
        "seeds_expected": expected_seeds(agenda, workload, name),
        **size,
        "runs": [{key: run[key] for key in KEPT} for run in runs],  # type: ignore[literal-required]
    }


def _versions(results: list[Result]) -> dict[str, str | None]:
    names = dict.fromkeys(name for result in results for name in result["versions"])
    return {name: _distinct(result["versions"].get(name) for result in results) for name in names}


def _distinct(values: Any) -> str | None:
    return " and ".join(dict.fromkeys(str(value) for value in values if value is not None)) or None


def to_text(value: Any, indent: int = 0) -> str:
    """Return a value as JSON, on one line what fits there: a run is a line."""
    line = json.dumps(value)
    if len(line) <= LINE or not isinstance(value, dict | list):
        return line
    is_list = isinstance(value, list)
    parts = value if is_list else value.items()
    texts = [to_text(p, indent + 1) if is_list else f"{json.dumps(p[0])}: {to_text(p[1], indent + 1)}" for p in parts]
    start, end = "[]" if is_list else "{}"
    inner = ",\n".join(f"{' ' * (indent + 1)}{text}" for text in texts)
    return f"{start}\n{inner}\n{' ' * indent}{end}"
