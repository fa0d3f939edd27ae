"""`fedadamw tune`: find each algorithm's best settings with Optuna, one setting after the other.

The order is the paper's: learning rate, weight decay, then the algorithm's own settings. Every trial trains on the
training data without a held-out share and is scored on that share; the test set is never used. Grids of learning rates
and weight decays grow while their best value is at an edge; trials far behind the others are stopped early.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from fedadamw.algorithms import registry
from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_text
from fedadamw.report.metrics import SCORES, Score, label, name_score
from fedadamw.report.study_files import Stage, Trial
from fedadamw.settings.load import build_experiment, read_recipe, set_path
from fedadamw.study.compare import RUNS_FOLDER, lock_study
from fedadamw.study.plan import (
    Overrides,
    check_overrides,
    check_runnable,
    check_single,
    default_jobs,
    plan,
    select_settings,
    select_single,
)
from fedadamw.study.progress import StudyProgress
from fedadamw.study.results import join_distinct
from fedadamw.study.search import VALIDATION, Search, open_journal, setting_path
from fedadamw.study.workers import POLL_S, EndedRun, Workers
from fedadamw.validation import check, check_one_of

PRUNING_S = 2.0  # between two checks whether trials should be stopped early


class Tuned(NamedTuple):
    """The result of tuning."""

    recipe: Path | None  # with the best settings of the algorithms that were tuned without an error
    errors: dict[str, str]  # algorithm -> why it has no best settings


def tune(
    recipe: str,
    algorithms: Sequence[str],
    overrides: Overrides,
    out: Path,
    *,
    only: Sequence[str] | None = None,
    by: str | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Tuned:
    """Tune each algorithm; write tuned.yaml, trials.json and table.md into `out`. After a stop the same call resumes.

    only: the settings to tune (lr, weight_decay, alpha, ...); by default all of the algorithm's `tuning`.
    by: the score to choose by, one of metrics.SCORES; by default that of a run with these settings.
    """
    known = _check_arguments(recipe, algorithms, overrides, only)
    of = _choose_score(recipe, algorithms, overrides, by)
    with lock_study(out):
        storage = open_journal(out / "optuna.log")
        runs = out / RUNS_FOLDER
        searches = [Search(recipe, name, overrides, only, runs, storage, jobs, of) for name in algorithms]
        check(any(search.grids for search in searches), f"nothing to tune: {', '.join(known)} are given")
        _run_trials(searches, jobs, quiet=quiet)
        successful = [search for search in searches if search.error is None]
        path = write_tuned(recipe, overrides, successful, out) if successful else None
    return Tuned(path, {search.algorithm: search.error for search in searches if search.error is not None})


def _check_arguments(
    recipe: str, algorithms: Sequence[str], overrides: Overrides, only: Sequence[str] | None
) -> list[str]:
    """Raise InputError for arguments that cannot be tuned; return the settings that the algorithms tune."""
    check_overrides(overrides, algorithms, "tuning takes algorithms from -a, and seed 0")
    check_single(overrides, algorithms, "tune")
    known = sorted({setting for name in algorithms for setting in registry.ALGORITHMS[name].tuning})
    overridden = dict(overrides)
    for setting in only or ():
        check_one_of("--only", setting, known)
        check(setting_path(setting) not in overridden, f"--only {setting}: {setting_path(setting)} is given")
    check("data.validation" not in overridden, f"tune sets data.validation itself, to {VALIDATION:g}")
    for name in algorithms:
        settings = [("algorithm.name", name), *select_settings(name, overrides), ("data.validation", VALIDATION)]
        check_runnable(build_experiment(recipe, settings))
    return known


def _choose_score(recipe: str, algorithms: Sequence[str], overrides: Overrides, by: str | None) -> Score:
    """Return the score to choose by; raises InputError if it is unknown, or if the runs will not have it."""
    settings = [[("algorithm.name", name), *select_settings(name, overrides)] for name in algorithms]
    experiments = [build_experiment(recipe, each) for each in settings]
    tested = all(each.tests_model for each in experiments)
    given = by or ("test" if tested else "clients_mean")
    check_one_of("--by", given, SCORES)
    check(given != "test" or tested, "--by test: with personal.parameters no model is tested on the test set")
    evaluated = given == "test" or all(each.training.client_evaluation for each in experiments)
    check(evaluated, f"--by {given}: set partition.held_out and training.client_evaluation")
    return next(score for score in SCORES if score == given)


def tune_for_comparison(
    recipe: str,
    algorithms: Sequence[str],
    seeds: int,
    overrides: Overrides,
    out: Path,
    *,
    by: str | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Tuned:
    """Tune, in `out`/tune, the settings that a comparison does not override; first check all of its runs."""
    plan(recipe, algorithms, range(seeds), overrides, out / RUNS_FOLDER, jobs)
    overridden = dict(overrides)
    settings = {setting for name in algorithms for setting in registry.ALGORITHMS[name].tuning}
    only = sorted(setting for setting in settings if setting_path(setting) not in overridden)
    check(bool(only), "--tune: every setting that could be tuned is given")
    single = select_single(overrides, algorithms)
    with lock_study(out):
        return tune(recipe, algorithms, single, out / "tune", only=only, by=by, jobs=jobs, quiet=quiet)


def _run_trials(searches: Sequence[Search], jobs: int | None, *, quiet: bool) -> None:
    """Run the trials of all searches on shared workers; earlier searches get free workers first."""
    pending = [run for search in searches for run in search.pending]
    if not pending:
        return
    count = sum(search.trial_count for search in searches)
    if count and not quiet:
        print(f"{count} trials are done already", flush=True)
    search_of: dict[str, Search] = {}  # name of a run -> its search
    ended: list[EndedRun] = []
    next_pruning = 0.0
    with StudyProgress((), quiet=quiet) as progress, Workers(jobs or default_jobs(pending)) as workers:
        while not all(search.done for search in searches):
            _start_trials(searches, workers, search_of)
            for end in workers.collect_ended():
                search_of[end.run.name].end(end.run, error=end.error)
                ended.append(end)
            if time.monotonic() >= next_pruning:
                ended += _stop_trials(workers, search_of)
                next_pruning = time.monotonic() + PRUNING_S
            progress.update([run for run, _ in workers.running.values()], ended)
            time.sleep(POLL_S)


def _start_trials(searches: Sequence[Search], workers: Workers, search_of: dict[str, Search]) -> None:
    """Start pending trials while workers are free."""
    for search in searches if workers.free else ():
        for run in search.pending:
            if run.done:  # in an earlier call that was stopped before it ended the trial
                search.begin(run)
                search.end(run)
            elif workers.free:
                search.begin(run)
                search_of[run.name] = search
                workers.start(run)


def _stop_trials(workers: Workers, search_of: dict[str, Search]) -> list[EndedRun]:
    """Stop the trials that are far behind the others."""
    stopped = []
    for run, _ in list(workers.running.values()):
        if search_of[run.name].should_stop(run):
            workers.stop(run)
            search_of[run.name].end(run, stopped=True)
            stopped.append(EndedRun(run, "stopped early: far behind other trials"))
    return stopped


def write_tuned(recipe: str, overrides: Overrides, searches: Sequence[Search], out: Path) -> Path:
    """Write tuned.yaml, trials.json and table.md; return the path of the first."""
    settings = read_recipe(recipe)
    sections = settings["algorithms"] = dict(settings.get("algorithms") or {})
    for setting, value in overrides:
        if not _is_of_algorithm(setting):
            set_path(settings, setting, value)
    for search in searches:
        fixed = {setting.rpartition(".")[2]: v for setting, v in search.overrides if _is_of_algorithm(setting)}
        sections[search.algorithm] = {**(sections.get(search.algorithm) or {}), **fixed, **search.best}
    if len(searches) == 1:
        set_path(settings, "algorithm.name", searches[0].algorithm)
    history = [stage for search in searches for stage in search.history]
    names = ", ".join(search.algorithm for search in searches)
    head = f"# {escape_text(recipe)} with tuned settings for {names}, "
    of_clients = any(search.by != "test" for search in searches)
    head += f"chosen {f'by {searches[0].by}' if of_clients else f'on {VALIDATION:.0%} of the training data'}.\n"
    path = out / "tuned.yaml"
    write_atomically(path, (head + yaml.safe_dump(settings, sort_keys=False)).encode())
    write_atomically(out / "trials.json", (json.dumps(history, indent=1) + "\n").encode())
    write_atomically(out / "table.md", format_table(history).encode())
    return path


def format_table(history: Sequence[Stage]) -> str:
    """Format every stage as a row of Markdown: the tried values with their held-out scores."""
    names = join_distinct(_describe_score(stage) for stage in history) or "held-out score"
    lines = [f"| algorithm | setting | best | tried: {names} |", "| --- | --- | ---: | --- |"]
    for stage in history:
        tried = ", ".join(f"{trial['value']:g}: {_format_trial(trial)}" for trial in stage["trials"])
        edge = " (at the edge of what was tried)" if stage["at_edge"] else ""
        lines.append(f"| {stage['algorithm']} | {stage['setting']} | {stage['best']:g}{edge} | {tried} |")
    return "\n".join(lines) + "\n"


def _describe_score(stage: Stage) -> str:
    by = stage.get("by", "test")  # which older files do not have
    return f"held-out {label(stage['metric'])}" if by == "test" else name_score(stage["metric"], by)


def _format_trial(trial: Trial) -> str:
    if trial["state"] == "complete":
        return f"{trial['score']:.1%}"
    if trial["state"] == "failed":
        return "failed"
    return "stopped early" if trial["score"] is None else f"stopped early at {trial['score']:.1%}"


def _is_of_algorithm(path: str) -> bool:
    """Whether a setting belongs in an algorithm's section under `algorithms`."""
    return path == "training.lr" or path.startswith("algorithm.")
