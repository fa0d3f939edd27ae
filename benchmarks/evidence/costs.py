"""How long runs take, from the seconds of those that have ended, and what is left in all."""

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.evidence.agenda import LEVELS, Agenda, Level, variants_of
from benchmarks.evidence.jobs import Job
from benchmarks.evidence.rule import FEWEST, seeds_expected
from benchmarks.evidence.store import Result
from benchmarks.evidence.variants import BASE
from benchmarks.evidence.workloads import WORKLOADS, Workload

TRIALS = 4  # of a learning rate, about: two first ones, one beyond, and now and then two with the second seed


class Costs:
    """Seconds of a run, by workload."""

    def __init__(self, results: Mapping[Job, Result]) -> None:
        self.results = results

    def run_s(self, workload: str) -> float:
        """Return the median seconds of the workload's last runs; what was measured in advance if there is none."""
        own = [result for job, result in self.results.items() if job.workload == workload]
        seconds = [result["wall_s"] + result["start_s"] for result in own]
        return median(seconds[-20:]) if seconds else WORKLOADS[workload].run_s


def lines_of_plan(agenda: Agenda, costs: Costs) -> list[str]:
    """Return what is left, level by level and workload by workload, with hours on one core."""
    lines, total = [], 0.0
    for level in LEVELS:
        counts = {w.name: count_left(agenda, w, level) for w in agenda.workloads if w.long == level.long}
        hours = sum(runs * costs.run_s(name) for name, runs in counts.items()) / 3600
        total += hours
        lines.append(f"{level.title}: about {sum(counts.values())} runs, {hours:.1f} hours ({total:.1f} in all)")
        lines += [f"    {name}: {n} runs of {costs.run_s(name):.0f} s" for name, n in counts.items() if n]
    return lines


def count_left(agenda: Agenda, workload: Workload, level: Level) -> int:
    """Return about how many runs a level still needs beyond the levels before it."""
    before = [earlier for earlier in LEVELS[: LEVELS.index(level)] if earlier.long == level.long]
    variants = variants_of(workload, level.kind)
    reached = max([0, *(earlier.most for earlier in before if earlier.kind == level.kind)])
    wanted = {v: expected_seeds(agenda, workload, v) for v in variants}
    if BASE in wanted:
        wanted[BASE] = max(wanted.values())
    return sum(_left(agenda, workload, v, (reached, level.most), wanted[v]) for v in variants)


def expected_seeds(agenda: Agenda, workload: Workload, variant: str) -> int:
    """Return how many seeds the rule will want of a variant, as far as can be said."""
    if variant == BASE:
        return FEWEST
    return seeds_expected(agenda.points(workload, variant), agenda.points(workload, BASE))


def _left(agenda: Agenda, workload: Workload, variant: str, span: Sequence[int], wanted: int) -> int:
    """Return the runs that are left of the seeds above span[0], up to span[1], and of the trials before them."""
    reached, most = span
    done = len(agenda.reported(workload, variant))
    upto = most if most == FEWEST else min(most, max(wanted, FEWEST))
    seeds = max(0, upto - max(done, reached))
    if reached or not agenda.trials(workload, variant):
        return seeds
    return seeds + max(1, TRIALS - len(agenda.tried(workload, variant)))
