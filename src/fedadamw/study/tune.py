"""`fedadamw tune`: each algorithm's settings one after the other (learning rate, weight decay, its own), by Optuna.

The order is the paper's. Every trial trains on the training data less a held-out share and is judged on that share:
the test set is never looked at. A grid grows while its best is at its edge; a trial that is hopeless is stopped early.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedadamw import registry
from fedadamw.checkpoint import write_atomically
from fedadamw.experiment import put, read
from fedadamw.study.compare import RUNS, held
from fedadamw.study.plan import Run, check_given, check_single, jobs_for
from fedadamw.study.search import VALIDATION, Search, journal
from fedadamw.study.show import Show
from fedadamw.study.workers import TICK_S, Ended, Workers
from fedadamw.validation import InputError, check, one_of

LOOK_S = 2.0  # between two looks at what the trials have come to


def tune(
    recipe: str,
    algorithms: Sequence[str],
    given: Sequence[tuple[str, Any]],
    out: Path,
    *,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Path:
    """Tune each algorithm; the recipe with the best settings is returned, tuned.yaml in `out`. Goes on after a stop.

    only: the settings to tune (lr, weight_decay, alpha, ...), all of the algorithm's `tuning` by default.
    Raises InputError, after the others' settings are written, where an algorithm has a setting that never worked.
    """
    check_given(given, algorithms)
    check_single(given, algorithms, "tune")
    known = {setting for name in algorithms for setting in registry.ALGORITHMS[name].tuning}
    for setting in only or ():
        one_of("--only", setting, sorted(known))
    check("data.validation" not in dict(given), f"tune sets data.validation itself, to {VALIDATION:g}")
    with held(out):
        storage = journal(out / "optuna.log")
        searches = [Search(recipe, name, given, only, out / RUNS, storage, jobs) for name in algorithms]
        _run(searches, jobs, quiet=quiet)
        well = [search for search in searches if search.error is None]
        path = _write(recipe, given, well, out) if well else out
    errors = [search.error for search in searches if search.error is not None]
    if errors:
        raise InputError("; ".join(errors))
    return path


def _run(searches: Sequence[Search], jobs: int | None, *, quiet: bool) -> None:
    """Trials of all searches share the workers; each search gets the next free one in turn."""
    of: dict[str, Search] = {}
    begun: list[Run] = []
    over: list[Ended] = []
    look = 0.0
    waiting = [run for search in searches for run in search.wanted]
    if not waiting:
        return
    with Show(begun, quiet=quiet) as show, Workers(jobs or jobs_for(waiting)) as workers:
        while not all(search.done for search in searches):
            for search in searches:
                for run in search.wanted:
                    if run.done:  # its process came to its end, ours did not
                        search.begin(run)
                        search.end(run)
                    elif workers.free:
                        search.begin(run)
                        of[run.name] = search
                        begun.append(run)
                        workers.start(run)
            for end in workers.ended():
                of[end.run.name].end(end.run, error=end.error)
                over.append(end)
            for run, _ in list(workers.running.values()):
                if time.monotonic() >= look and of[run.name].hopeless(run):
                    workers.stop(run)
                    of[run.name].end(run, stopped=True)
                    over.append(Ended(run, "hopeless, stopped early"))
            look = time.monotonic() + LOOK_S if time.monotonic() >= look else look
            show([run for run, _ in workers.running.values()], over)
            time.sleep(TICK_S)


def _write(recipe: str, given: Iterable[tuple[str, Any]], searches: Sequence[Search], out: Path) -> Path:
    """tuned.yaml, trials.json and table.md."""
    settings = read(recipe)
    own = settings["algorithms"] = dict(settings.get("algorithms") or {})
    for setting, value in given:
        if not _is_own(setting):
            put(settings, setting, value)
    for search in searches:
        fixed = {setting.rpartition(".")[2]: value for setting, value in search.given if _is_own(setting)}
        own[search.algorithm] = {**(own.get(search.algorithm) or {}), **fixed, **search.best}
    if len(searches) == 1:
        put(settings, "algorithm.name", searches[0].algorithm)
    history = [stage for search in searches for stage in search.history]
    names = ", ".join(search.algorithm for search in searches)
    head = f"# {recipe} with tuned settings for {names}, chosen on {VALIDATION:.0%} of the training data.\n"
    path = out / "tuned.yaml"
    write_atomically(path, (head + yaml.safe_dump(settings, sort_keys=False)).encode())
    write_atomically(out / "trials.json", (json.dumps(history, indent=1) + "\n").encode())
    write_atomically(out / "table.md", table(history).encode())
    return path


def table(history: Iterable[Mapping[str, Any]]) -> str:
    """Every stage as a row of Markdown: the values that were tried, with their held-out accuracy."""
    lines = ["| algorithm | setting | best | tried: held-out accuracy |", "| --- | --- | ---: | --- |"]
    for stage in history:
        tried = ", ".join(f"{t['value']:g}: {_outcome(t)}" for t in stage["trials"])
        edge = " (at the edge of what was tried)" if stage["at_edge"] else ""
        lines.append(f"| {stage['algorithm']} | {stage['setting']} | {stage['best']:g}{edge} | {tried} |")
    return "\n".join(lines) + "\n"


def _outcome(trial: Mapping[str, Any]) -> str:
    if trial["state"] == "complete":
        return f"{trial['accuracy']:.1%}"
    return "stopped early" if trial["state"] == "pruned" else "failed"


def _is_own(path: str) -> bool:
    """Whether a setting belongs to an algorithm, as its entry under `algorithms` has it."""
    return path == "training.lr" or path.startswith("algorithm.")
