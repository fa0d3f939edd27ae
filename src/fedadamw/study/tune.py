"""`fedadamw tune`: each algorithm's settings one after the other (learning rate, weight decay, its own), by Optuna.

The order is the paper's. Every trial trains on the training data less a held-out share and is judged on that share:
the test set is never looked at. The grid of a learning rate or a weight decay grows while its best is at its edge; a
trial that has no chance is stopped early.
"""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedadamw.algorithms import registry
from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_text
from fedadamw.report.metrics import label
from fedadamw.report.study_files import Stage, Trial
from fedadamw.settings.load import build_experiment, read_recipe, set_path
from fedadamw.study.compare import RUNS, lock_study
from fedadamw.study.plan import (
    check_given,
    check_runnable,
    check_single,
    choose_jobs,
    plan,
    select_settings,
    select_single_values,
)
from fedadamw.study.progress import StudyProgress
from fedadamw.study.results import distinct
from fedadamw.study.search import VALIDATION, Search, journal, path_of
from fedadamw.study.workers import TICK_S, Ended, Workers
from fedadamw.validation import check, check_one_of

LOOK_S = 2.0  # between two looks at what the trials have come to


class Tuned(NamedTuple):
    """The result of tuning."""

    recipe: Path | None  # with the best settings of all algorithms that came to an end
    errors: dict[str, str]  # algorithm -> why it did not


def tune(
    recipe: str,
    algorithms: Sequence[str],
    given: Sequence[tuple[str, Any]],
    out: Path,
    *,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Tuned:
    """Tune each algorithm, and write tuned.yaml, trials.json and table.md in `out`. The same call resumes.

    only: the settings to tune (lr, weight_decay, alpha, ...), all of the algorithm's `tuning` by default.
    """
    check_given(given, algorithms, "tuning takes one algorithm after the other from -a, and seed 0")
    check_single(given, algorithms, "tune")
    known = {setting for name in algorithms for setting in registry.ALGORITHMS[name].tuning}
    for setting in only or ():
        check_one_of("--only", setting, sorted(known))
        check(path_of(setting) not in dict(given), f"--only {setting}: {path_of(setting)} is given")
    check("data.validation" not in dict(given), f"tune sets data.validation itself, to {VALIDATION:g}")
    for name in algorithms:
        overrides = [("algorithm.name", name), *select_settings(name, given), ("data.validation", VALIDATION)]
        check_runnable(build_experiment(recipe, overrides))
    with lock_study(out):
        storage = journal(out / "optuna.log")
        searches = [Search(recipe, name, given, only, out / RUNS, storage, jobs) for name in algorithms]
        check(any(search.grids for search in searches), f"nothing to tune: {', '.join(sorted(known))} are given")
        _run(searches, jobs, quiet=quiet)
        well = [search for search in searches if search.error is None]
        path = _write(recipe, given, well, out) if well else None
    return Tuned(path, {search.algorithm: search.error for search in searches if search.error is not None})


def tune_for_comparison(
    recipe: str,
    algorithms: Sequence[str],
    seeds: int,
    given: Sequence[tuple[str, Any]],
    out: Path,
    *,
    jobs: int | None = None,
    quiet: bool = False,
) -> Tuned:
    """Check all runs of a comparison with these arguments, then tune in `out`/tune the settings that it leaves open."""
    plan(recipe, algorithms, range(seeds), given, out / RUNS, jobs)
    paths = dict(given)
    tunings = {name: registry.ALGORITHMS[name].tuning for name in algorithms}
    only = sorted({setting for tuning in tunings.values() for setting in tuning if path_of(setting) not in paths})
    check(bool(only), "--tune: every setting that could be tuned is given")
    with lock_study(out):
        return tune(
            recipe, algorithms, select_single_values(given, algorithms), out / "tune", only=only, jobs=jobs, quiet=quiet
        )


def _run(searches: Sequence[Search], jobs: int | None, *, quiet: bool) -> None:
    """Run the trials of all searches on shared workers; earlier searches come first."""
    of: dict[str, Search] = {}
    over: list[Ended] = []
    look = 0.0
    waiting = [run for search in searches for run in search.pending]
    if not waiting:
        return
    if not quiet and any(search.trials for search in searches):
        print(f"{sum(search.trials for search in searches)} trials are done already", flush=True)
    with StudyProgress((), quiet=quiet) as show, Workers(jobs or choose_jobs(waiting)) as workers:
        while not all(search.done for search in searches):
            for search in searches if workers.free else ():
                for run in search.pending:
                    if run.done:  # its process came to its end, ours did not
                        search.begin(run)
                        search.end(run)
                    elif workers.free:
                        search.begin(run)
                        of[run.name] = search
                        workers.start(run)
            for end in workers.ended():
                of[end.run.name].end(end.run, error=end.error)
                over.append(end)
            due = time.monotonic() >= look
            for run, _ in list(workers.running.values()) if due else ():
                if of[run.name].should_stop(run):
                    workers.stop(run)
                    of[run.name].end(run, stopped=True)
                    over.append(Ended(run, "hopeless, stopped early"))
            look = time.monotonic() + LOOK_S if due else look
            show([run for run, _ in workers.running.values()], over)
            time.sleep(TICK_S)


def _write(recipe: str, given: Iterable[tuple[str, Any]], searches: Sequence[Search], out: Path) -> Path:
    """Write tuned.yaml, trials.json and table.md."""
    settings = read_recipe(recipe)
    own = settings["algorithms"] = dict(settings.get("algorithms") or {})
    for setting, value in given:
        if not _is_own(setting):
            set_path(settings, setting, value)
    for search in searches:
        fixed = {setting.rpartition(".")[2]: value for setting, value in search.given if _is_own(setting)}
        own[search.algorithm] = {**(own.get(search.algorithm) or {}), **fixed, **search.best}
    if len(searches) == 1:
        set_path(settings, "algorithm.name", searches[0].algorithm)
    history = [stage for search in searches for stage in search.history]
    names = ", ".join(search.algorithm for search in searches)
    head = f"# {escape_text(recipe)} with tuned settings for {names}, "
    head += f"chosen on {VALIDATION:.0%} of the training data.\n"
    path = out / "tuned.yaml"
    write_atomically(path, (head + yaml.safe_dump(settings, sort_keys=False)).encode())
    write_atomically(out / "trials.json", (json.dumps(history, indent=1) + "\n").encode())
    write_atomically(out / "table.md", table(history).encode())
    return path


def table(history: Sequence[Stage]) -> str:
    """Return a Markdown table with one row per stage: the values tried and their held-out scores."""
    metric = distinct(label(stage["metric"]) for stage in history) or "score"
    lines = [f"| algorithm | setting | best | tried: held-out {metric} |", "| --- | --- | ---: | --- |"]
    for stage in history:
        tried = ", ".join(f"{t['value']:g}: {_outcome(t)}" for t in stage["trials"])
        edge = " (at the edge of what was tried)" if stage["at_edge"] else ""
        lines.append(f"| {stage['algorithm']} | {stage['setting']} | {stage['best']:g}{edge} | {tried} |")
    return "\n".join(lines) + "\n"


def _outcome(trial: Trial) -> str:
    if trial["state"] == "complete":
        return f"{trial['score']:.1%}"
    if trial["state"] == "failed":
        return "failed"
    return "stopped early" if trial["score"] is None else f"stopped early at {trial['score']:.1%}"


def _is_own(path: str) -> bool:
    """Whether a setting belongs to an algorithm, as its entry under `algorithms` has it."""
    return path == "training.lr" or path.startswith("algorithm.")
