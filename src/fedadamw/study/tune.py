"""`fedadamw tune`: each algorithm's settings one after the other (learning rate, weight decay, its own), by Optuna.

The order is the paper's. Every trial trains on the training data less a held-out share and is judged on that share:
the test set is never looked at. A grid grows while its best is at its edge; a trial that is hopeless is stopped early.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fedadamw import registry
from fedadamw.checkpoint import write_atomically
from fedadamw.experiment import assemble, put, read
from fedadamw.run_folder import RunFolder, settings_digest
from fedadamw.study.plan import Run, one_thread, words, workers_for
from fedadamw.study.show import Show
from fedadamw.study.workers import TICK_S, Ended, Workers
from fedadamw.validation import InputError, check, one_of

if TYPE_CHECKING:
    import optuna

VALIDATION = 0.1  # of the training data, held out for the choice
GROWS = ("lr", "server_lr", "weight_decay")  # grids that may grow beyond their ends
LOOK_S = 2.0  # between two looks at what the trials have come to
MOST_STEPS = 3  # that a grid grows on either side


class Search:
    """One algorithm's search: a stage a setting, each with the best of the earlier ones."""

    def __init__(
        self,
        recipe: str,
        algorithm: str,
        given: Sequence[tuple[str, Any]],
        only: Sequence[str] | None,
        out: Path,
    ) -> None:
        self.recipe, self.algorithm, self.given, self.out = recipe, algorithm, given, out
        grids = registry.ALGORITHMS[algorithm].tuning
        fixed = {path.removeprefix("algorithm.").removeprefix("training.") for path, _ in given}
        self.grids = {name: grid for name, grid in grids.items() if (not only or name in only) and name not in fixed}
        self.best: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self._storage = _storage(out / "optuna.log")
        self._trials: dict[str, optuna.Trial] = {}  # name of a run -> its trial
        self._steps = 0
        self._begin_stage()

    @property
    def done(self) -> bool:
        """Whether every stage is over."""
        return len(self.best) == len(self.grids)

    def wanted(self) -> list[Run]:
        """The trials of this stage that have no result and are not under way."""
        if self.done:
            return []
        over = {t.params.get(self.stage) for t in self.study.trials if t.state.is_finished()}
        runs = [self.run_of(value) for value in self.grid if value not in over]
        return [run for run in runs if run.name not in self._trials]

    def begin(self, run: Run) -> None:
        """The trial of `run` starts, or goes on after a stop."""
        import optuna

        value = _value_of(run, self.stage)
        left = [t for t in self.study.trials if t.params.get(self.stage) == value and not t.state.is_finished()]
        if left:
            self._trials[run.name] = optuna.Trial(self.study, left[0]._trial_id)
            return
        only = optuna.distributions.FloatDistribution(value, value)
        self._trials[run.name] = self.study.ask({self.stage: only})

    def hopeless(self, run: Run) -> bool:
        """Tell the trial what its run has come to so far; whether it should stop."""
        trial = self._trials[run.name]
        known = self.study.trials[trial.number].intermediate_values
        for record in run.folder.records():
            if record["test_accuracy"] is not None and record["round"] not in known:
                trial.report(record["test_accuracy"], record["round"])
        return trial.should_prune()

    def end(self, run: Run, *, stopped: bool, error: str | None = None) -> None:
        """The trial of `run` is over; after the last of a stage the next one begins."""
        import optuna

        trial = self._trials.pop(run.name)
        if error is not None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif stopped:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial, run.folder.records()[-1]["test_accuracy"])
        self._settle()

    def run_of(self, value: float) -> Run:
        """The run that tries `value` for this stage's setting."""
        chosen = {**self.best, self.stage: value}
        pairs = [(_path(name), v) for name, v in chosen.items()]
        base = [("algorithm.name", self.algorithm), *self.given, ("data.validation", VALIDATION), ("seed", 0)]
        label = {"algorithm": self.algorithm, **{path: words(v) for path, v in pairs}}
        return Run(one_thread(assemble(self.recipe, [*base, *pairs])), label, self.out / "runs")

    def _begin_stage(self) -> None:
        """The next setting's study, continued where the folder has it."""
        if self.done:
            return
        import optuna

        self.stage = list(self.grids)[len(self.best)]
        self.grid = sorted(self.grids[self.stage])
        self._steps = 0
        rounds = self.run_of(self.grid[0]).experiment.training.rounds
        self.study = optuna.create_study(
            study_name=f"{self.algorithm}/{self.stage}/{self._digest()}",
            storage=self._storage,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=rounds // 3),
            load_if_exists=True,
        )
        self._settle()

    def _digest(self) -> str:
        """Of all settings but the one that this stage varies: results of others are never taken for its own."""
        return settings_digest(self.run_of(min(self.grids[self.stage])).experiment)[:10]

    def _settle(self) -> None:
        """Grow the grid while its best is at its edge; then keep the best and go to the next stage."""
        while not self.done and not self.wanted() and not self._trials:
            results = {t.params[self.stage]: t for t in self.study.trials if self.stage in t.params}
            values = {v: results[v].values[0] for v in self.grid if results[v].state.name == "COMPLETE"}
            if not values:
                raise InputError(f"{self.algorithm}: no trial of {self.stage} in {self.grid} came to its end")
            usual = registry.settings_of(self.algorithm).get(self.stage)
            best = max(values, key=lambda v: (values[v], v == usual))
            grown = self._grown(best)
            if grown is not None:
                self.grid, self._steps = grown, self._steps + 1
                continue
            self.history.append(
                {
                    "algorithm": self.algorithm,
                    "setting": self.stage,
                    "best": best,
                    "trials": [
                        {"value": v, "accuracy": results[v].value, "state": results[v].state.name.lower()}
                        for v in self.grid
                    ],
                }
            )
            self.best[self.stage] = best
            self._begin_stage()

    def _grown(self, best: float) -> list[float] | None:
        """The grid with one more value beyond `best`, where that is at an edge and growing helps."""
        if self.stage not in GROWS or len(self.grid) < 2 or self._steps >= 2 * MOST_STEPS:
            return None
        if best == self.grid[0]:
            return [_round(best * self.grid[0] / self.grid[1]), *self.grid]
        if best == self.grid[-1]:
            return [*self.grid, _round(best * self.grid[-1] / self.grid[-2])]
        return None


def tune(
    recipe: str,
    algorithms: Sequence[str],
    given: Sequence[tuple[str, Any]],
    out: Path,
    *,
    only: Sequence[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Tune each algorithm; the recipe with the best settings is returned, tuned.yaml in `out`. Goes on after a stop.

    only: the settings to tune (lr, weight_decay, alpha, ...), all of the algorithm's `tuning` by default.
    """
    for name in algorithms:
        one_of("algorithm", name, registry.ALGORITHMS)
    known = {setting for name in algorithms for setting in registry.ALGORITHMS[name].tuning}
    for setting in only or ():
        one_of("--only", setting, sorted(known))
    check(len(set(algorithms)) == len(algorithms), f"-a {','.join(algorithms)}: names one algorithm twice")
    check(all(not isinstance(v, list) for _, v in given), "tune takes one value a setting, no lists")
    check(
        not {"data.validation", "seed", "algorithm.name"} & {p for p, _ in given}, "tune sets the validation and seed"
    )
    out.mkdir(parents=True, exist_ok=True)
    with RunFolder(out).locked():
        searches = [Search(recipe, name, given, only, out) for name in algorithms]
        _run(searches, quiet=quiet)
        return _write(recipe, given, searches, out)


def _run(searches: Sequence[Search], *, quiet: bool) -> None:
    """Trials of all searches share the workers; each search gets the next free one in turn."""
    of: dict[str, Search] = {}
    begun: list[Run] = []
    over: list[Ended] = []
    look = 0.0
    waiting = [run for search in searches for run in search.wanted()]
    if not waiting:
        return
    with Show(begun, quiet=quiet) as show, Workers(workers_for(waiting)) as workers:
        while not all(search.done for search in searches):
            for search in searches:
                for run in search.wanted():
                    if run.done:  # its process came to its end, ours did not
                        search.begin(run)
                        search.end(run, stopped=False)
                    elif workers.free:
                        search.begin(run)
                        of[run.name] = search
                        begun.append(run)
                        workers.start(run)
            for end in workers.ended():
                of[end.run.name].end(end.run, stopped=False, error=end.error)
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
        fixed = {setting.rpartition(".")[2]: value for setting, value in given if _is_own(setting)}
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
        lines.append(f"| {stage['algorithm']} | {stage['setting']} | {stage['best']:g} | {tried} |")
    return "\n".join(lines) + "\n"


def _outcome(trial: Mapping[str, Any]) -> str:
    if trial["state"] == "complete":
        return f"{trial['accuracy']:.1%}"
    return "stopped early" if trial["state"] == "pruned" else "failed"


def _is_own(path: str) -> bool:
    """Whether a setting belongs to an algorithm, as its entry under `algorithms` has it."""
    return path == "training.lr" or path.startswith("algorithm.")


def _path(setting: str) -> str:
    return "training.lr" if setting == "lr" else f"algorithm.{setting}"


def _value_of(run: Run, setting: str) -> float:
    experiment = run.experiment
    return float(experiment.training.lr if setting == "lr" else experiment.algorithm[setting])


def _round(value: float) -> float:
    """Two digits: 0.0029999 is 0.003."""
    return float(f"{value:.2g}")


def _storage(path: Path) -> "optuna.storages.BaseStorage":
    """Optuna's journal: a file of JSON lines, which a killed process leaves readable."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        raise InputError("tune needs optuna: pip install 'fedadamw[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
