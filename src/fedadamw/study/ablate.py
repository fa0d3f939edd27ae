"""`fedadamw ablate`: studies of FedAdamW's parts and settings, each with its table and figure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from fedadamw.checkpoint import write_atomically
from fedadamw.report.study_files import Results
from fedadamw.study.compare import RUNS_FOLDER, lock_study, run_pending, write_study
from fedadamw.study.plan import Overrides, Run, check_distinct, check_single, plan
from fedadamw.study.results import collect_results, read_results
from fedadamw.validation import check, check_one_of

ALGORITHM = "fedadamw"
PARTS: Mapping[str, Overrides] = {
    "FedAdamW": (),
    "without shared v": (("algorithm.share", "none"),),
    "without alignment": (("algorithm.alpha", 0.0),),
    "without weight decay": (("algorithm.weight_decay", 0.0),),
    "without shared v and alignment": (("algorithm.share", "none"), ("algorithm.alpha", 0.0)),
}
# Name -> (title, settings of each variant). A list of values makes a variant of each value.
STUDIES: dict[str, tuple[str, Mapping[str, Overrides]]] = {
    "parts": ("FedAdamW without each of its parts", PARTS),
    "sharing": ("Which moments are shared", {"": (("algorithm.share", ["none", "m", "v", "vm", "mean-v"]),)}),
    "blocks": (
        "Blocks over which v is averaged",
        {"": (("model.blocks", ["coordinate", "paper", "coarse", "tensor"]),)},
    ),
    "alpha": ("Weight of the global direction", {"": (("algorithm.alpha", [0.0, 0.25, 0.5, 0.75, 1.0]),)}),
    "align": (
        "When steps go along the global direction",
        {"": (("algorithm.align", ["always", "agreement", "cautious", "bounded"]),)},
    ),
    "memory": (
        "Gradients that the carried v counts for",
        {"": (("algorithm.memory", [0.0, 0.25, 1.0, 4.0, 16.0, inf]),)},
    ),
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
    overrides: Overrides,
    out: Path,
    *,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> dict[str, Results]:
    """Run every study of STUDIES, or those in `only`, each into a folder in `out`. After a stop the same call resumes.

    table.md has their tables, and those of earlier calls with the same settings. Runs in common are run once.
    """
    studies = _select_studies(only, overrides)
    plans = {
        name: _plan_study(recipe, variants, seeds, overrides, out / RUNS_FOLDER, jobs)
        for name, (_, variants) in studies.items()
    }
    distinct_runs = {run.name: run for runs in plans.values() for run in runs}
    results = {}
    with lock_study(out):
        ended = run_pending(list(distinct_runs.values()), jobs, quiet=quiet)
        for name, runs in plans.items():
            results[name] = collect_results(recipe, runs, ended)
            write_study(results[name], out / name)
        write_tables(out, list(results))
    return results


def _select_studies(only: Sequence[str] | None, overrides: Overrides) -> dict[str, tuple[str, Mapping[str, Overrides]]]:
    """Return the studies named in `only`, or all; raises InputError if an override is not possible in one of them."""
    for name in only or ():
        check_one_of("--only", name, STUDIES)
    check_single(overrides, [ALGORITHM], "ablate")
    overridden = dict(overrides)
    check("algorithm.name" not in overridden, f"ablate is for {ALGORITHM} only")
    studies = {name: STUDIES[name] for name in only or STUDIES}
    for name, (_, variants) in studies.items():
        for path in (path for settings in variants.values() for path, _ in settings):
            check(path not in overridden, f"-s {path}: the study {name} varies it")
    return studies


def _plan_study(
    recipe: str, variants: Mapping[str, Overrides], seeds: int, overrides: Overrides, parent: Path, jobs: int | None
) -> list[Run]:
    """Return a study's runs; raises InputError if `overrides` make two of its variants the same."""
    runs = []
    for name, settings in variants.items():
        planned = plan(recipe, [ALGORITHM], range(seeds), [*overrides, *settings], parent, jobs)
        runs += [replace(run, label={"part": name}) for run in planned] if name else planned
    check_distinct(runs)
    return runs


def write_tables(out: Path, names: Sequence[str]) -> None:
    """Write table.md with all saved studies that have the same settings as the studies `names`."""
    paths = {name: out / name / "results.json" for name in STUDIES}
    saved = {name: read_results(path) for name, path in paths.items() if path.exists()}
    kept = [name for name in saved if all(_have_same_settings(saved[name], saved[other]) for other in names)]
    tables = [f"## {STUDIES[name][0]}\n\n{(out / name / 'table.md').read_text()}" for name in kept]
    write_atomically(out / "table.md", "\n".join(tables).encode())


def _have_same_settings(a: Results, b: Results) -> bool:
    """Whether two saved studies have the same recipe, and the same settings except those that either varies."""
    shared = [(a["settings"][path], b["settings"][path]) for path in a["settings"].keys() & b["settings"].keys()]
    return a["recipe"] == b["recipe"] and all(x[0] or y[0] or x == y for x, y in shared)
