"""`fedadamw ablate`: FedAdamW taken apart, one question a study, each with its table and figure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import write_atomically
from fedadamw.report.study_files import Results
from fedadamw.study.compare import RUNS, lock_study, run_here, save
from fedadamw.study.plan import Run, check_distinct, check_single, plan
from fedadamw.study.results import collect
from fedadamw.validation import check, check_one_of

Pairs = Sequence[tuple[str, Any]]

ALGORITHM = "fedadamw"
PARTS: Mapping[str, Pairs] = {
    "FedAdamW": (),
    "without shared v": (("algorithm.share", "none"),),
    "without alignment": (("algorithm.alpha", 0.0),),
    "without weight decay": (("algorithm.weight_decay", 0.0),),
    "without shared v and alignment": (("algorithm.share", "none"), ("algorithm.alpha", 0.0)),
}
# Name -> (title, variants by name: their settings). A list of values makes a variant of each, named by its value.
STUDIES: dict[str, tuple[str, Mapping[str, Pairs]]] = {
    "parts": ("FedAdamW without each of its parts", PARTS),
    "sharing": ("Which moments are shared", {"": (("algorithm.share", ["none", "m", "v", "vm", "mean-v"]),)}),
    "blocks": (
        "Over which blocks v is averaged",
        {"": (("model.blocks", ["coordinate", "paper", "coarse", "tensor"]),)},
    ),
    "alpha": ("Weight of the global direction", {"": (("algorithm.alpha", [0.0, 0.25, 0.5, 0.75, 1.0]),)}),
    "weight-decay": ("Weight decay", {"": (("algorithm.weight_decay", [0.0, 1e-3, 1e-2, 1e-1]),)}),
    "local-steps": ("Local steps K", {"": (("training.steps", [10, 20, 50, 100]),)}),
    "beta2": (
        "Memory of v: beta2",
        {"": (("algorithm.betas", [[0.9, 0.9], [0.9, 0.98], [0.9, 0.99], [0.9, 0.999]]),)},
    ),
}


def ablate(
    recipe: str,
    seeds: int,
    given: Pairs,
    out: Path,
    *,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> dict[str, Results]:
    """Every study of STUDIES, or those in `only`: a folder each in `out`, and their tables in table.md, with those of
    earlier calls that had the same settings.

    A run that several studies share is run once. The same call resumes.
    """
    for name in only or ():
        check_one_of("--only", name, STUDIES)
    check_single(given, [ALGORITHM], "ablate")
    check("algorithm.name" not in dict(given), f"ablate takes {ALGORITHM} apart, no other algorithm")
    chosen = {name: STUDIES[name] for name in only or STUDIES}
    for name, (_, variants) in chosen.items():
        for path, _ in (pair for pairs in variants.values() for pair in pairs):
            check(path not in dict(given), f"-s {path}: the study {name} varies it")
    plans = {name: _runs(recipe, variants, seeds, given, out / RUNS, jobs) for name, (_, variants) in chosen.items()}
    every = {run.name: run for runs in plans.values() for run in runs}
    found = {}
    with lock_study(out):
        ended = run_here(list(every.values()), jobs, quiet=quiet)
        for name, runs in plans.items():
            found[name] = collect(recipe, runs, ended)
            save(found[name], out / name)
        saved = {name: json.loads(p.read_text()) for name in STUDIES if (p := out / name / "results.json").exists()}
        here = [name for name in saved if all(_agree(saved[name], saved[ours]) for ours in found)]
        tables = [f"## {STUDIES[name][0]}\n\n{(out / name / 'table.md').read_text()}" for name in here]
        write_atomically(out / "table.md", "\n".join(tables).encode())
    return found


def _runs(
    recipe: str, variants: Mapping[str, Pairs], seeds: int, given: Pairs, parent: Path, jobs: int | None
) -> list[Run]:
    """Return a study's runs; raise InputError if the given settings make two variants the same."""
    runs = []
    for name, pairs in variants.items():
        own = plan(recipe, [ALGORITHM], range(seeds), [*given, *pairs], parent, jobs)
        runs += [replace(run, label={"part": name}) for run in own] if name else own
    check_distinct(runs)
    return runs


def _agree(a: Results, b: Results) -> bool:
    """Whether two saved studies have the same recipe and the same settings, except those that either varies."""
    shared = [(a["settings"][path], b["settings"][path]) for path in a["settings"].keys() & b["settings"].keys()]
    return a["recipe"] == b["recipe"] and all(x[0] or y[0] or x == y for x, y in shared)
