"""One algorithm in one mode: tuned there, then run with the reported seeds."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.common.scored import read, score_of
from benchmarks.evidence.rule import FEWEST, FIRST_SEED, TUNING_SEEDS, Tried, best_rate, next_trials
from benchmarks.evidence.workloads import RUNGS
from benchmarks.measure.asynchronous_jobs.jobs import SUBJECTS, Job

ALPHAS: Mapping[str, tuple[float, ...]] = {"fedadamw": (0.0, 0.25, 0.5)}  # of algorithms with alignment: all are tried
FIRST_ALPHA = 0.25  # with which rates are tried
ALGORITHMS = ("fedadamw", "local-adamw")
EXPECTED_TRIALS = {"fedadamw": 7, "local-adamw": 4}  # a guess
KEPT = ("seed", "score", "error", "end_s", "rounds", "curve", "idle", "up_mb", "jobs", "steps")
KEPT_OF_JOBS = ("staleness_mean", "staleness_max", "slowest", "cpu_s")


class Choice(NamedTuple):
    """What a cell is run with."""

    lr: float
    alpha: float | None


class Cell(NamedTuple):
    """One algorithm in one mode."""

    subject: str
    mode: str
    algorithm: str
    small: bool = False

    def job(self, lr: float, alpha: float | None, seed: int, *, tuning: bool) -> Job:
        """Return a run of this cell."""
        return Job(self.subject, self.mode, self.algorithm, lr, alpha, seed, tuning, self.small)

    @property
    def first_alpha(self) -> float | None:
        """The alpha with which learning rates are tried."""
        return FIRST_ALPHA if self.algorithm in ALPHAS else None

    def trials_of_rates(self) -> list[Job]:
        """Return the runs that choosing the learning rate still needs."""
        tried = self._tried_rates()
        if self.small and tried:
            return []
        rates = SUBJECTS[self.subject].rates
        wanted = next_trials(tried, rates[:1] if self.small else rates, RUNGS)
        return [self.job(lr, self.first_alpha, seed, tuning=True) for lr, seed in wanted]

    def trials_of_alphas(self) -> list[Job]:
        """Return the runs that choosing alpha still needs, once the learning rate is chosen."""
        lr = best_rate(self._tried_rates())
        if lr is None or self.first_alpha is None or self.small:
            return []
        alphas = ALPHAS[self.algorithm]
        return [
            self.job(lr, alpha, seed, tuning=True)
            for alpha, seed in next_trials(self._tried_alphas(lr), alphas, alphas)
        ]

    def choice(self) -> Choice | None:
        """Return the best settings; None before all are tried, or if all diverged."""
        lr = None if self.trials_of_rates() else best_rate(self._tried_rates())
        if lr is None or self.trials_of_alphas():
            return None
        tunes = self.first_alpha is not None and not self.small
        return Choice(lr, best_rate(self._tried_alphas(lr)) if tunes else self.first_alpha)

    def jobs(self) -> list[Job]:
        """Return the reported runs; none before the settings are chosen."""
        chosen = self.choice()
        seeds = range(FIRST_SEED, FIRST_SEED + (1 if self.small else FEWEST)) if chosen is not None else ()
        return [self.job(*chosen, seed, tuning=False) for seed in seeds if chosen is not None]

    def missing(self) -> Iterator[Job]:
        """Yield the runs that can start now."""
        trials = self.trials_of_rates() or self.trials_of_alphas()
        yield from trials or (job for job in self.jobs() if not job.file.exists())

    def left(self) -> int:
        """Return about how many runs are left: how many trials there will be is only known at their end."""
        if self.choice() is not None:
            return len(list(self.missing()))
        trials = 1 if self.small else EXPECTED_TRIALS[self.algorithm]
        return max(trials - len(self.tried()), len(list(self.missing()))) + (1 if self.small else FEWEST)

    def tried(self) -> list[dict[str, Any]]:
        """Return the results of all trials."""
        lr = best_rate(self._tried_rates())
        jobs = [*self._rate_jobs(), *(self._alpha_jobs(lr) if lr is not None else ())]
        return [read(job) for job in dict.fromkeys(jobs) if job.file.exists()]

    def result(self) -> dict[str, Any]:
        """Return what the record keeps."""
        chosen, runs = self.choice(), [read(job) for job in self.jobs() if job.file.exists()]
        return {
            "mode": self.mode,
            "algorithm": self.algorithm,
            **(chosen._asdict() if chosen is not None else {"lr": None, "alpha": None}),
            "trials": [{key: run[key] for key in ("lr", "alpha", "seed", "score")} for run in self.tried()],
            "runs": [{key: run[key] for key in (*KEPT, *KEPT_OF_JOBS)} for run in runs],
        }

    def _rate_jobs(self) -> list[Job]:
        return [self.job(lr, self.first_alpha, seed, tuning=True) for lr in RUNGS for seed in TUNING_SEEDS]

    def _alpha_jobs(self, lr: float) -> list[Job]:
        alphas = ALPHAS.get(self.algorithm, ())
        return [self.job(lr, alpha, seed, tuning=True) for alpha in alphas for seed in TUNING_SEEDS]

    def _tried_rates(self) -> Tried:
        return {(job.lr, job.seed): score_of(job) for job in self._rate_jobs() if job.file.exists()}

    def _tried_alphas(self, lr: float) -> Tried:
        jobs = [job for job in self._alpha_jobs(lr) if job.file.exists()]
        return {(job.alpha or 0.0, job.seed): score_of(job) for job in jobs}
