"""A point of a curve: one algorithm at one epsilon, tuned there, then run with the reported seeds."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.common.scored import read, score_of
from benchmarks.evidence.rule import FEWEST, FIRST_SEED, TUNING_SEEDS, Tried, best_rate, next_trials
from benchmarks.measure.curve_jobs.jobs import ADAPTIVE, SUBJECTS, Job

ALGORITHMS = ("fedadamw", "local-adamw", "fedavg")
EPSILONS = (None, 8.0, 3.0, 1.0)  # None: no privacy
RUNGS = tuple(float(f"{first}e{power}") for power in range(-4, 3) for first in (1, 3))  # 1e-4, 3e-4, ... 300
CLIPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FIRST_CLIP, FIRST_CLIPS = 1.0, (0.3, 1.0)  # with which rates are tried; that are tried first
EXPECTED_TRIALS = {True: 8, False: 4}  # of a point, with privacy and without; a guess


class Choice(NamedTuple):
    """What a point is run with."""

    lr: float
    clip: float | None


class Cell(NamedTuple):
    """One algorithm at one epsilon."""

    subject: str
    algorithm: str
    epsilon: float | None
    small: bool = False

    def job(self, lr: float, clip: float | None, seed: int, *, tuning: bool) -> Job:
        """Return a run of this point."""
        return Job(self.subject, self.algorithm, self.epsilon, lr, clip, seed, tuning, self.small)

    @property
    def first_rates(self) -> Sequence[float]:
        """The learning rates that are tried first."""
        rates = SUBJECTS[self.subject].rates
        found = rates.get(self.algorithm, rates[ADAPTIVE])
        return found[:1] if self.small else found

    @property
    def first_clip(self) -> float | None:
        """The clip with which learning rates are tried."""
        return None if self.epsilon is None else FIRST_CLIP

    def trials_of_rates(self) -> list[Job]:
        """Return the runs that choosing the learning rate still needs."""
        tried = self._tried_rates()
        if self.small and tried:
            return []
        wanted = next_trials(tried, self.first_rates, RUNGS)
        return [self.job(lr, self.first_clip, seed, tuning=True) for lr, seed in wanted]

    def trials_of_clips(self) -> list[Job]:
        """Return the runs that choosing the clip still needs, once the learning rate is chosen."""
        lr = self._rate()
        if lr is None or self.epsilon is None or self.small:
            return []
        wanted = next_trials(self._tried_clips(lr), FIRST_CLIPS, CLIPS)
        return [self.job(self._scale(lr, clip), clip, seed, tuning=True) for clip, seed in wanted]

    def choice(self) -> Choice | None:
        """Return the best settings; None before all are tried, or if all diverged."""
        lr = None if self.trials_of_rates() else self._rate()
        if lr is None or self.trials_of_clips():
            return None
        clip = self.first_clip if self.epsilon is None or self.small else best_rate(self._tried_clips(lr))
        return Choice(lr if clip is None else self._scale(lr, clip), clip)

    def jobs(self) -> list[Job]:
        """Return the reported runs; none before the settings are chosen."""
        chosen = self.choice()
        seeds = range(FIRST_SEED, FIRST_SEED + (1 if self.small else FEWEST)) if chosen is not None else ()
        return [self.job(*chosen, seed, tuning=False) for seed in seeds if chosen is not None]

    def missing(self) -> Iterator[Job]:
        """Yield the runs that can start now."""
        trials = self.trials_of_rates() or self.trials_of_clips()
        yield from trials or (job for job in self.jobs() if not job.file.exists())

    def left(self) -> int:
        """Return about how many runs are left: how many trials there will be is only known at their end."""
        if self.choice() is not None:
            return len(list(self.missing()))
        trials = 1 if self.small else EXPECTED_TRIALS[self.epsilon is not None]
        done = len(self.tried())
        return max(trials - done, len(list(self.missing()))) + (1 if self.small else FEWEST)

    def tried(self) -> list[dict[str, Any]]:
        """Return the results of all trials."""
        lr = self._rate()
        jobs = [*self._rate_jobs(), *(self._clip_jobs(lr) if lr is not None else ())]
        return [read(job) for job in dict.fromkeys(jobs) if job.file.exists()]

    def result(self) -> dict[str, Any]:
        """Return what the record keeps."""
        chosen = self.choice()
        return {
            "algorithm": self.algorithm,
            "epsilon": self.epsilon,
            **(chosen._asdict() if chosen is not None else {"lr": None, "clip": None}),
            "trials": [{key: run[key] for key in ("lr", "clip", "seed", "score")} for run in self.tried()],
            "runs": [{key: run[key] for key in ("seed", "score", "error", "spent", "cpu_s")} for run in self._runs()],
        }

    def _runs(self) -> list[dict[str, Any]]:
        return [read(job) for job in self.jobs() if job.file.exists()]

    def _rate_jobs(self) -> list[Job]:
        return [self.job(lr, self.first_clip, seed, tuning=True) for lr in RUNGS for seed in TUNING_SEEDS]

    def _clip_jobs(self, lr: float) -> list[Job]:
        return [self.job(self._scale(lr, clip), clip, seed, tuning=True) for clip in CLIPS for seed in TUNING_SEEDS]

    def _tried_rates(self) -> Tried:
        return {(job.lr, job.seed): score_of(job) for job in self._rate_jobs() if job.file.exists()}

    def _tried_clips(self, lr: float) -> Tried:
        jobs = [job for job in self._clip_jobs(lr) if job.file.exists()]
        return {(job.clip or 0.0, job.seed): score_of(job) for job in jobs}

    def _rate(self) -> float | None:
        return best_rate(self._tried_rates())

    def _scale(self, lr: float, clip: float) -> float:
        """Return the learning rate at another clip: FedAvg's step is as long as the clip, AdamW's as long as before."""
        return lr * FIRST_CLIP / clip if self.algorithm == "fedavg" else lr
