"""What runs next: the most valuable first, from the results there are.

Levels, in order: every short workload has its five seeds of the main variants, each tuned; then ours are compared on
the two workloads that choose; then there are ten seeds where the rule wants them; then five of the other variants; then
up to twenty of the main ones; then the long workloads; last, up to twenty of the others.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from benchmarks.evidence.jobs import Job
from benchmarks.evidence.rule import FEWEST, FIRST_SEED, MOST, TUNING_SEEDS, Tried, best_rate, next_trials, seeds_wanted
from benchmarks.evidence.variants import BASE, CHOSEN_ON, MAIN, RIVALS, VARIANTS, is_known
from benchmarks.evidence.workloads import RUNGS, WORKLOADS, Workload, first_rates

Kind = Literal["main", "rivals", "others"]
TEN = 10  # seeds of the main variants before others have any


class Level(NamedTuple):
    """Runs of the same value."""

    title: str
    long: bool  # the long workloads, else the short ones
    kind: Kind  # which variants
    most: int  # seeds


LEVELS = (
    Level("five seeds of the main variants", False, "main", FEWEST),
    Level("five seeds of our other settings, where one is chosen", False, "rivals", FEWEST),
    Level("up to ten seeds of the main variants", False, "main", TEN),
    Level("five seeds of the others", False, "others", FEWEST),
    Level("up to twenty seeds of the main variants", False, "main", MOST),
    Level("the long workloads", True, "main", FEWEST),
    Level("the others in the long workloads", True, "others", FEWEST),
    Level("up to twenty seeds of our other settings", False, "rivals", MOST),
    Level("up to twenty seeds of the others", False, "others", MOST),
    Level("up to twenty seeds in the long workloads", True, "main", MOST),
)


class Agenda:
    """What there is to do, given the results. With `only`, of these workloads."""

    def __init__(self, scores: Mapping[Job, float | None], only: Sequence[str] = (), *, small: bool = False) -> None:
        self.scores, self.small = scores, small  # in points, of the runs that have ended; None: diverged
        self.workloads = [w for w in WORKLOADS.values() if not only or w.name in only]

    def next_jobs(self) -> Iterator[Job]:
        """Yield the runs that can start now, most valuable first; a job may come more than once."""
        for level in LEVELS:
            yield from self.jobs_of(level)

    def jobs_of(self, level: Level) -> list[Job]:
        """Return the runs of a level that can start now: whole workloads first, then seed by seed."""
        jobs: list[Job] = []
        for workload in self.workloads:
            if workload.long == level.long:
                for variant in variants_of(workload, level.kind):
                    jobs += self._jobs_of_variant(workload, variant, level.most)
        return jobs if level.most == FEWEST else sorted(jobs, key=lambda job: (job.seed, job.tuning))

    def tried(self, workload: Workload, variant: str) -> Tried:
        """Return the scores of a variant's trials by learning rate and seed."""
        return {
            (lr, seed): self.scores[job]
            for lr in RUNGS
            for seed in TUNING_SEEDS
            if (job := Job(workload.name, variant, lr, seed, True, self.small)) in self.scores
        }

    def trials(self, workload: Workload, variant: str) -> list[Job]:
        """Return the trials that the variant's learning rate still needs."""
        first = first_rates(workload, VARIANTS[variant].algorithm)
        wanted = next_trials(self.tried(workload, variant), first, RUNGS)
        return [Job(workload.name, variant, lr, seed, True, self.small) for lr, seed in wanted]

    def rate(self, workload: Workload, variant: str) -> float | None:
        """Return the variant's learning rate; None as long as trials are missing, or if all diverged."""
        return None if self.trials(workload, variant) else best_rate(self.tried(workload, variant))

    def reported(self, workload: Workload, variant: str) -> dict[int, Job]:
        """Return the variant's reported runs that have ended, by seed."""
        lr = self.rate(workload, variant)
        jobs = self._seeds(workload, variant, lr, MOST) if lr is not None else []
        return {job.seed: job for job in jobs if job in self.scores}

    def points(self, workload: Workload, variant: str) -> dict[int, float]:
        """Return the variant's scores by seed, of reported runs that did not diverge."""
        found = {seed: self.scores[job] for seed, job in self.reported(workload, variant).items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def count_wanted(self, workload: Workload, variant: str, most: int) -> int:
        """Return the seeds that the rule wants of a variant now; of the base as many as of any other.

        Another seed takes the place of one with which the variant or the base diverged.
        """
        if variant == BASE:
            others = [v for v in variants_of(workload) if v != BASE]
            return max([FEWEST, *(len(self.reported(workload, v)) for v in others)])
        ours, base = (self.reported(workload, name) for name in (variant, BASE))
        lost = {seed for jobs in (ours, base) for seed, job in jobs.items() if self.scores[job] is None}
        wanted = seeds_wanted(self.points(workload, variant), self.points(workload, BASE), most)
        return min(wanted + len(lost & ours.keys()), most)

    def _jobs_of_variant(self, workload: Workload, variant: str, most: int) -> list[Job]:
        if trials := self.trials(workload, variant):
            return trials
        lr = self.rate(workload, variant)
        if lr is None:
            return []
        base = self._base_jobs(workload, variant)
        count = min(self.count_wanted(workload, variant, most), most)
        return [*base, *(job for job in self._seeds(workload, variant, lr, count) if job not in self.scores)]

    def _base_jobs(self, workload: Workload, variant: str) -> list[Job]:
        """Return the base's runs that are missing for the seeds that the variant has."""
        lr = None if variant == BASE else self.rate(workload, BASE)
        jobs = [] if lr is None else self._seeds(workload, BASE, lr, MOST)
        return [job for job in jobs if job.seed in self.reported(workload, variant) and job not in self.scores]

    def _seeds(self, workload: Workload, variant: str, lr: float, count: int) -> list[Job]:
        seeds = range(FIRST_SEED, FIRST_SEED + count)
        return [Job(workload.name, variant, lr, seed, False, self.small) for seed in seeds]


def variants_of(workload: Workload, *kinds: Kind) -> list[str]:
    """Return the variants of a workload that this version has, of these kinds or of all."""
    rivals = RIVALS if workload.name in CHOSEN_ON else ()
    names: dict[Kind, Iterable[str]] = {"main": MAIN, "rivals": rivals, "others": workload.others}
    return [name for kind in kinds or names for name in names[kind] if is_known(name)]
