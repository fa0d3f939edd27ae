"""The search for one algorithm's best settings: a stage for each setting, which keeps the best of earlier stages.

A stage is an Optuna study over a grid, kept in a journal. The grid grows while its best value is at an end of it.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedadamw.algorithms import registry
from fedadamw.report.metrics import Score, main_metric, score
from fedadamw.report.study_files import Stage
from fedadamw.runner.digest import settings_digest
from fedadamw.settings.load import build_experiment
from fedadamw.study.plan import Overrides, Run, format_value, limit_threads, select_settings
from fedadamw.study.results import describe_missing_score
from fedadamw.validation import missing_extra_error

if TYPE_CHECKING:
    import optuna

VALIDATION = 0.1  # share of the training data that is held out for tuning
GROWING = ("lr", "server_lr", "outer_lr", "weight_decay")  # settings whose grids may grow
MAX_ADDED = 3  # values that a grid may grow by at each end
PRUNE_AFTER = 2 / 3  # share of its rounds after which a trial may be stopped early


class Search:
    """The stages of one algorithm. Run those that are `pending`: call `begin` and `end` for each.

    overrides: settings of all trials; those that the algorithm does not have are ignored.
    only: the settings to tune, by default all of the algorithm's `tuning`. by: the score to choose by.
    """

    def __init__(
        self,
        recipe: str,
        algorithm: str,
        overrides: Overrides,
        only: Sequence[str] | None,
        parent: Path,
        storage: "optuna.storages.BaseStorage",
        jobs: int | None = None,
        by: Score = "test",
    ) -> None:
        self.by = by
        self.recipe, self.algorithm, self.parent, self.jobs = recipe, algorithm, parent, jobs
        self.overrides = select_settings(algorithm, overrides)
        fixed = {path.removeprefix("algorithm.").removeprefix("training.") for path, _ in self.overrides}
        self.grids = {
            name: sorted(grid)
            for name, grid in registry.ALGORITHMS[algorithm].tuning.items()
            if (not only or name in only) and name not in fixed
        }
        self.best: dict[str, float] = {}  # setting -> its best value, for each finished stage
        self.history: list[Stage] = []  # finished stages
        self.error: str | None = None  # why the search cannot continue
        self._storage = storage
        self._begin_stage()

    @property
    def done(self) -> bool:
        """Whether every stage is finished, or the search has failed."""
        return self.error is not None or len(self.best) == len(self.grids)

    @property
    def pending(self) -> list[Run]:
        """The runs of this stage's trials that have no result and are not running."""
        if self.done:
            return []
        ended = {t.params[self.stage] for t in self._ended_trials()} | set(self._failed)
        runs = [self._run_of(value) for value in self.grid if value not in ended]
        return [run for run in runs if run.name not in self._trials]

    @property
    def trial_count(self) -> int:
        """How many trials have a result, in all stages so far."""
        return sum(len(stage["trials"]) for stage in self.history) + (0 if self.done else len(self._ended_trials()))

    def begin(self, run: Run) -> None:
        """Begin the trial of `run`, or resume it."""
        import optuna

        value = self._values[run.name]
        open_ = [t for t in self.study.trials if t.params.get(self.stage) == value and not t.state.is_finished()]
        if open_:
            self._trials[run.name] = optuna.Trial(self.study, open_[0]._trial_id)
            return
        only_value = optuna.distributions.FloatDistribution(value, value)
        self._trials[run.name] = self.study.ask({self.stage: only_value})

    def should_stop(self, run: Run) -> bool:
        """Report the scores of `run` so far; return whether its trial should be stopped early."""
        trial = self._report_scores(run)
        return trial.should_prune() and self._values[run.name] not in self._protected

    def end(self, run: Run, *, stopped: bool = False, error: str | None = None) -> None:
        """End the trial of `run`; after the last of a stage the next stage begins.

        A failure lasts for this search only: the next command tries again, since its cause may be gone.
        """
        import optuna

        trial = self._report_scores(run)
        del self._trials[run.name]
        if not stopped and error is None:
            error = describe_missing_score(run.records, self.by)
        if error is not None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self._failed[self._values[run.name]] = error
        elif stopped:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.set_user_attr("metric", main_metric(run.records, self.by))
            self.study.tell(trial, score(run.records[-1], self.by))
        self._advance()

    def _report_scores(self, run: Run) -> "optuna.Trial":
        """Report all scores of `run` so far to its trial, and return the trial."""
        trial = self._trials[run.name]
        known = self.study.trials[trial.number].intermediate_values
        for record in run.records:
            if (value := score(record, self.by)) is not None and record["round"] not in known:
                trial.report(value, record["round"])
        return trial

    def _run_of(self, value: float) -> Run:
        """Return the run that tries `value` for this stage's setting."""
        if value not in self._runs:
            tuned = [(setting_path(name), v) for name, v in {**self.best, self.stage: value}.items()]
            fixed = [("algorithm.name", self.algorithm), *self.overrides, ("data.validation", VALIDATION), ("seed", 0)]
            label = {"algorithm": self.algorithm, **{path: format_value(v) for path, v in tuned}}
            experiment = limit_threads(build_experiment(self.recipe, [*fixed, *tuned]), self.jobs)
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
        self._trials: dict[str, optuna.Trial] = {}  # name of a running run -> its trial
        self._failed: dict[float, str] = {}  # value -> error
        self._protected: set[float] = set()  # stopped above the best final score: these run to their end
        first = self._run_of(self.grid[0]).experiment
        by = "" if self.by == "test" else f"/{self.by}"
        self.study = optuna.create_study(  # its name covers all else: no trial of other settings or scores is reused
            study_name=f"{self.algorithm}/{self.stage}/{settings_digest(first)[:10]}{by}",
            storage=self._storage,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=2, n_warmup_steps=round(PRUNE_AFTER * first.training.rounds)
            ),
            load_if_exists=True,
        )
        self._advance()

    def _ended_trials(self) -> "list[optuna.trial.FrozenTrial]":
        """Return this stage's trials with a result: complete, or stopped early."""

        def is_pruned(t: "optuna.trial.FrozenTrial") -> bool:
            return t.state.name == "PRUNED" and t.params[self.stage] not in self._protected

        trials = [t for t in self.study.trials if self.stage in t.params]
        return [t for t in trials if t.state.name == "COMPLETE" or is_pruned(t)]

    def _advance(self) -> None:
        """Once the whole grid was tried: let it grow while its best is at an end, then begin the next stage."""
        while not self.done and not self.pending and not self._trials:
            tried = {t.params[self.stage]: t for t in self._ended_trials()}
            scores = {v: t.values[0] for v, t in tried.items() if t.state.name == "COMPLETE" and v in self.grid}
            if not scores:
                reason = next(iter(self._failed.values()), "all were stopped early")
                self.error = f"{self.algorithm}: no trial of {self.stage} finished: {reason}"
                return
            top = max(scores.values())
            pruned = {v: t.value for v, t in tried.items() if t.state.name == "PRUNED"}
            wrongly_pruned = {v for v, last in pruned.items() if last is not None and last >= top}
            if wrongly_pruned:
                self._protected |= wrongly_pruned
                continue
            default = registry.settings_of(self.algorithm).get(self.stage)
            best = max(scores, key=lambda v: (scores[v], v == default))
            next_value = self._value_beyond(best)
            if next_value is not None:
                self.grid = sorted([*self.grid, next_value])
                continue
            self.history.append(self._record_stage(best, tried))
            self.best[self.stage] = best
            self._begin_stage()

    def _record_stage(self, best: float, tried: "Mapping[float, optuna.trial.FrozenTrial]") -> Stage:
        return {
            "algorithm": self.algorithm,
            "setting": self.stage,
            "metric": self.study.user_attrs["metric"],
            "by": self.by,
            "best": best,
            "at_edge": best in (self.grid[0], self.grid[-1]),
            "trials": [
                {"value": v, "score": tried[v].value if v in tried else None, "state": trial_state(v, tried)}
                for v in self.grid
            ],
        }

    def _value_beyond(self, best: float) -> float | None:
        """Return a value beyond `best`, if that is at an end of the grid at which it may grow."""
        start = self.grids[self.stage]
        if self.stage not in GROWING or len(start) < 2:
            return None
        below, above = (sum(v < start[0] for v in self.grid), sum(v > start[-1] for v in self.grid))
        if best == self.grid[0] and below < MAX_ADDED:
            return round_to_two_digits(best * self.grid[0] / self.grid[1])
        if best == self.grid[-1] and above < MAX_ADDED:
            return round_to_two_digits(best * self.grid[-1] / self.grid[-2])
        return None


def trial_state(value: float, tried: "Mapping[float, optuna.trial.FrozenTrial]") -> str:
    """Return the state of a value's trial: complete, pruned or failed."""
    if value not in tried:
        return "failed"
    return "complete" if tried[value].state.name == "COMPLETE" else "pruned"


def open_journal(path: Path) -> "optuna.storages.BaseStorage":
    """Open Optuna's journal for one process: JSON lines, which stay readable if a process is killed."""
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        raise missing_extra_error("tune needs optuna", "tune") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # of a killed process: the folder is locked by us
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)  # an incomplete last line
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def setting_path(setting: str) -> str:
    """Return the path of a setting of `tuning` in a recipe."""
    return "training.lr" if setting == "lr" else f"algorithm.{setting}"


def round_to_two_digits(value: float) -> float:
    """Round to two significant digits: 0.0029999 to 0.003."""
    return float(f"{value:.2g}")
