"""`fedadamw ablate`: FedAdamW taken apart, one question a study, each with its table and figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import write_atomically
from fedadamw.study.compare import RUNS, held, run_here, save
from fedadamw.study.plan import Run, check_single, plan
from fedadamw.study.results import Results, collect
from fedadamw.validation import check, one_of

Pairs = Sequence[tuple[str, Any]]

ALGORITHM = "fedadamw"
STUDIES: dict[
    str, tuple[str, Sequence[Pairs]]
] = {  # name -> (title, settings; a list of values makes a variant of each)
    "parts": (
        "FedAdamW without each of its parts",
        (
            (),
            (("algorithm.share", "none"),),
            (("algorithm.alpha", 0.0),),
            (("algorithm.weight_decay", 0.0),),
            (("algorithm.share", "none"), ("algorithm.alpha", 0.0)),
        ),
    ),
    "sharing": ("Which moments are shared", ((("algorithm.share", ["none", "m", "v", "vm", "mean-v"]),),)),
    "blocks": ("Over which blocks v is averaged", ((("model.blocks", ["coordinate", "paper", "coarse", "tensor"]),),)),
    "alpha": ("Weight of the global direction", ((("algorithm.alpha", [0.0, 0.25, 0.5, 0.75, 1.0]),),)),
    "weight-decay": ("Weight decay", ((("algorithm.weight_decay", [0.0, 1e-3, 1e-2, 1e-1]),),)),
    "local-steps": ("Local steps K", ((("training.steps", [10, 20, 50, 100]),),)),
    "beta2": (
        "Memory of v: beta2",
        ((("algorithm.betas", [[0.9, 0.9], [0.9, 0.98], [0.9, 0.99], [0.9, 0.999]]),),),
    ),
}
NAMES = {  # of the parts' variants
    (): "FedAdamW",
    ("share",): "without shared v",
    ("alpha",): "without alignment",
    ("weight_decay",): "without weight decay",
    ("share", "alpha"): "without shared v and alignment",
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
    """Every study of STUDIES, or those in `only`: a folder each in `out`, and all tables in table.md.

    Runs that studies have in common are run once. The same call goes on after a stop.
    """
    for name in only or ():
        one_of("--only", name, STUDIES)
    check_single(given, [ALGORITHM], "ablate")
    check("algorithm.name" not in dict(given), f"ablate takes {ALGORITHM} apart, no other algorithm")
    chosen = {name: STUDIES[name] for name in only or STUDIES}
    for name, (_, variants) in chosen.items():
        for path, _ in (pair for pairs in variants for pair in pairs):
            check(path not in dict(given), f"-s {path}: the study {name} varies it")
    plans = {
        name: _runs(recipe, name, variants, seeds, given, out / RUNS, jobs) for name, (_, variants) in chosen.items()
    }
    every = {run.name: run for runs in plans.values() for run in runs}
    found = {}
    with held(out):
        ended = run_here(list(every.values()), jobs, quiet=quiet)
        for name, runs in plans.items():
            found[name] = collect(recipe, runs, ended)
            save(found[name], out / name)
        ever = [name for name in STUDIES if (out / name / "results.json").exists()]  # by this command or an earlier one
        tables = [f"## {STUDIES[name][0]}\n\n{(out / name / 'table.md').read_text()}" for name in ever]
        write_atomically(out / "table.md", "\n".join(tables).encode())
    return found


def _runs(
    recipe: str, study: str, variants: Sequence[Pairs], seeds: int, given: Pairs, parent: Path, jobs: int | None
) -> list[Run]:
    every = [[*given, *pairs] for pairs in variants]
    runs = [run for pairs in every for run in plan(recipe, [ALGORITHM], range(seeds), pairs, parent, jobs)]
    if study != "parts":
        return runs
    names = [NAMES[tuple(path.removeprefix("algorithm.") for path, _ in pairs)] for pairs in variants]
    return [Run(run.experiment, {"part": names[i // seeds]}, parent) for i, run in enumerate(runs)]
