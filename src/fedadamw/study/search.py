"""Searches one algorithm's best settings: one stage per setting, using the best values of the earlier stages.

A stage is an Optuna study over a grid, kept in a journal. The grid grows while its best is at an end of it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedadamw.algorithms import registry
from fedadamw.report.metrics import main, score
from fedadamw.report.study_files import Stage
from fedadamw.runner.folder import settings_digest
from fedadamw.settings.load import build_experiment
from fedadamw.study.plan import Run, select_settings, share_cores, words
from fedadamw.study.results import not_a_number
from fedadamw.validation import missing_extra_error

if TYPE_CHECKING:
    import optuna

VALIDATION = 0.1  # of the training data, held out for the choice
GROWS = ("lr", "server_lr", "weight_decay")  # grids that may grow beyond their ends
SAFE = 2 / 3  # of its rounds that a trial runs before it can be stopped early
MOST_GROWN = 3  # values that a grid may grow at either end


class Search:
    """The stages of one algorithm. Ask for the runs that are `pending`, and `begin` and `end` each.

    given: settings that hold for all trials; those that the algorithm does not have are left out.
    only: the settings to tune, by default all of the algorithm's `tuning`.
    """

    def __init__(
        self,
        recipe: str,
        algorithm: str,
        given: Sequence[tuple[str, Any]],
        only: Sequence[str] | None,
        parent: Path,
        storage: "optuna.storages.BaseStorage",
        jobs: int | None = None,
    ) -> None:
        self.recipe, self.algorithm, self.parent, self.jobs = recipe, algorithm, parent, jobs
        self.given = select_settings(algorithm, given)
        fixed = {path.removeprefix("algorithm.").removeprefix("training.") for path, _ in self.given}
        self.grids = {
            name: sorted(grid)
            for name, grid in registry.ALGORITHMS[algorithm].tuning.items()
            if (not only or name in only) and name not in fixed
        }
        self.best: dict[str, float] = {}  # setting -> its best value, of the stages that are over
        self.history: list[Stage] = []  # those stages, for trials.json
        self.error: str | None = None  # why the search failed
        self._storage = storage
        self._begin_stage()

    @property
    def done(self) -> bool:
        """Whether every stage is over, or none can follow."""
        return self.error is not None or len(self.best) == len(self.grids)

    @property
    def pending(self) -> list[Run]:
        """The runs of this stage that have no result and are not running."""
        if self.done:
            return []
        over = {t.params[self.stage] for t in self._list_finished()} | set(self._failed)
        runs = [self._run_of(value) for value in self.grid if value not in over]
        return [run for run in runs if run.name not in self._trials]

    @property
    def trials(self) -> int:
        """Number of trials with a result, in this stage and the earlier ones."""
        return sum(len(stage["trials"]) for stage in self.history) + (0 if self.done else len(self._list_finished()))

    def begin(self, run: Run) -> None:
        """Start the trial of `run`, or resume it."""
        import optuna

        value = self._values[run.name]
        open_ = [t for t in self.study.trials if t.params.get(self.stage) == value and not t.state.is_finished()]
        if open_:
            self._trials[run.name] = optuna.Trial(self.study, open_[0]._trial_id)
            return
        only = optuna.distributions.FloatDistribution(value, value)
        self._trials[run.name] = self.study.ask({self.stage: only})

    def should_stop(self, run: Run) -> bool:
        """Report the run's scores so far, and return whether to stop it early."""
        trial = self._report_scores(run)
        return trial.should_prune() and self._values[run.name] not in self._spared

    def end(self, run: Run, *, stopped: bool = False, error: str | None = None) -> None:
        """End the trial of `run`; after the last trial of a stage, begin the next stage.

        A failure counts for this search only; the next command tries again.
        """
        import optuna

        trial = self._report_scores(run)
        del self._trials[run.name]
        if not stopped and error is None:
            error = not_a_number(run.records)  # worse than any score
        if error is not None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self._failed[self._values[run.name]] = error
        elif stopped:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.set_user_attr("metric", main(run.records))
            self.study.tell(trial, score(run.records[-1]))
        self._settle()

    def _report_scores(self, run: Run) -> "optuna.Trial":
        """Report all of the run's scores to its trial, and return the trial."""
        trial = self._trials[run.name]
        known = self.study.trials[trial.number].intermediate_values
        for record in run.records:
            if (value := score(record)) is not None and record["round"] not in known:
                trial.report(value, record["round"])
        return trial

    def _run_of(self, value: float) -> Run:
        """Return the run that tries `value` for this stage's setting."""
        if value not in self._runs:
            chosen = [(path_of(name), v) for name, v in {**self.best, self.stage: value}.items()]
            base = [("algorithm.name", self.algorithm), *self.given, ("data.validation", VALIDATION), ("seed", 0)]
            label = {"algorithm": self.algorithm, **{path: words(v) for path, v in chosen}}
            experiment = share_cores(build_experiment(self.recipe, [*base, *chosen]), self.jobs)
            self._runs[value] = Run(experiment, label, self.parent)
            self._values[self._runs[value].name] = value
        return self._runs[value]

    def _begin_stage(self) -> None:
        """Create the next setting's study, or continue it if the journal has it."""
        if self.done:
            return
        import optuna

        self.stage = list(self.grids)[len(self.best)]
        self.grid = self.grids[self.stage]
        self._runs: dict[float, Run] = {}
        self._values: dict[str, float] = {}  # name of a run -> its value of this stage's setting
        self._trials: dict[str, optuna.Trial] = {}  # name of a run under way -> its trial
        self._failed: dict[float, str] = {}  # value -> what went wrong
        self._spared: set[float] = set()  # stopped early with a better score than the final best: these resume
        first = self._run_of(self.grid[0]).experiment
        self.study = optuna.create_study(  # its name says all settings but this stage's: no other's results are taken
            study_name=f"{self.algorithm}/{self.stage}/{settings_digest(first)[:10]}",
            storage=self._storage,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=round(SAFE * first.training.rounds)),
            load_if_exists=True,
        )
        self._settle()

    def _list_finished(self) -> "list[optuna.trial.FrozenTrial]":
        """Return this stage's trials with a result: complete, or stopped early."""

        def stopped(t: "optuna.trial.FrozenTrial") -> bool:
            return t.state.name == "PRUNED" and t.params[self.stage] not in self._spared

        trials = [t for t in self.study.trials if self.stage in t.params]
        return [t for t in trials if t.state.name == "COMPLETE" or stopped(t)]

    def _settle(self) -> None:
        """After all values: extend the grid if its best is at an end, else record the best and begin a stage."""
        while not self.done and not self.pending and not self._trials:
            tried = {t.params[self.stage]: t for t in self._list_finished()}
            values = {v: t.values[0] for v, t in tried.items() if t.state.name == "COMPLETE" and v in self.grid}
            if not values:
                why = next(iter(self._failed.values()), "all were stopped early")
                self.error = f"{self.algorithm}: no trial of {self.stage} came to its end: {why}"
                return
            regretted = {
                v
                for v, t in tried.items()
                if t.state.name == "PRUNED" and t.value is not None and t.value >= max(values.values())
            }
            if regretted:
                self._spared |= regretted
                continue
            usual = registry.settings_of(self.algorithm).get(self.stage)
            best = max(values, key=lambda v: (values[v], v == usual))
            extension = self._extend_grid(best)
            if extension is not None:
                self.grid = sorted([*self.grid, extension])
                continue
            self.history.append(
                {
                    "algorithm": self.algorithm,
                    "setting": self.stage,
                    "metric": self.study.user_attrs["metric"],
                    "best": best,
                    "at_edge": best in (self.grid[0], self.grid[-1]),
                    "trials": [
                        {"value": v, "score": tried[v].value if v in tried else None, "state": outcome(v, tried)}
                        for v in self.grid
                    ],
                }
            )
            self.best[self.stage] = best
            self._begin_stage()

    def _extend_grid(self, best: float) -> float | None:
        """Return a value beyond `best` if it is at an end of the grid that may still grow, else None."""
        start = self.grids[self.stage]
        if self.stage not in GROWS or len(start) < 2:
            return None
        below, above = (sum(v < start[0] for v in self.grid), sum(v > start[-1] for v in self.grid))
        if best == self.grid[0] and below < MOST_GROWN:
            return two_digits(best * self.grid[0] / self.grid[1])
        if best == self.grid[-1] and above < MOST_GROWN:
            return two_digits(best * self.grid[-1] / self.grid[-2])
        return None


def outcome(value: float, tried: "Mapping[float, optuna.trial.FrozenTrial]") -> str:
    """Return the state of a value's trial: complete, pruned or failed."""
    if value not in tried:
        return "failed"
    return "complete" if tried[value].state.name == "COMPLETE" else "pruned"


def journal(path: Path) -> "optuna.storages.BaseStorage":
    """Open Optuna's journal, a file of JSON lines that stays readable after a kill. For one process at a time."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        raise missing_extra_error("tune needs optuna", "tune") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # left by a killed one: the folder is ours alone
    if path.exists():
        written = path.read_bytes()
        os.truncate(path, written.rfind(b"\n") + 1)  # and so a line that it did not finish
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def path_of(setting: str) -> str:
    """Return the path in a recipe of a setting of `tuning`."""
    return "training.lr" if setting == "lr" else f"algorithm.{setting}"


def two_digits(value: float) -> float:
    """Round to two significant digits: 0.0029999 to 0.003."""
    return float(f"{value:.2g}")
