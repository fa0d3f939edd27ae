"""Runs what is on the agenda until the time is over: several at a time, each in a process of its own."""

import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

from benchmarks.evidence.agenda import Agenda
from benchmarks.evidence.child import ELSEWHERE, LOG, train
from benchmarks.evidence.costs import Costs
from benchmarks.evidence.jobs import Job, experiment
from benchmarks.evidence.store import Store, points
from fedadamw.runner.fork_server import start_fork_server, without_main_module

POLL_S = 0.5
MAX_SAVE_S = 60.0  # that a stopped run may take to write its checkpoint


class Session:
    """Runs at most `workers` jobs at a time; leaving the block stops the remaining ones, which go on next time."""

    def __init__(self, store: Store, data: Path, workers: int, only: Sequence[str], *, small: bool = False) -> None:
        self.store, self.data, self.workers, self.only, self.small = store, data, workers, only, small
        self.running: dict[Job, BaseProcess] = {}
        self.failed: dict[Job, str] = {}  # not tried again in this session
        self.elsewhere: set[Job] = set()  # which another session runs
        self.ended = 0
        self._context = start_fork_server()

    def run(self, budget_s: float | None) -> None:
        """Run until nothing is left, or no run can be expected to end within `budget_s` from now."""
        start = time.monotonic()
        while True:
            left = None if budget_s is None else budget_s - (time.monotonic() - start)
            while len(self.running) < self.workers and (job := self._next(left)) is not None:
                self._start(job)
            if not self.running:
                return
            time.sleep(POLL_S)
            self._collect()

    def agenda(self) -> Agenda:
        """Return the agenda after the results there are."""
        results = self.store.refresh().results
        return Agenda({job: points(result) for job, result in results.items()}, self.only, small=self.small)

    def _next(self, left_s: float | None) -> Job | None:
        """Return the most valuable run that is not running, if it can be expected to end in time."""
        agenda = self.agenda()
        costs = Costs(self.store.results)
        for job in agenda.next_jobs():
            if job in self.running or job in self.failed or job in self.elsewhere:
                continue
            if left_s is None or costs.run_s(job.workload) <= left_s:
                return job
        return None

    def _start(self, job: Job) -> None:
        experiment(job, self.data)  # wrong settings and missing data are told here
        arguments = (job, str(self.data), str(self.store.folder))
        process = self._context.Process(target=train, args=arguments)
        with without_main_module():
            process.start()
        self.running[job] = process

    def _collect(self) -> None:
        for job, process in list(self.running.items()):
            if process.exitcode is not None:
                del self.running[job]
                self._tell(job, process.exitcode)
                process.close()

    def _tell(self, job: Job, code: int) -> None:
        """Print how a run ended, unless another session runs it."""
        if code == ELSEWHERE:
            self.elsewhere.add(job)
            return
        self.ended += 1
        result = self.store.refresh().results.get(job)
        if result is None:
            self.failed[job] = self._reason(job, code)
            print(f"{_describe(job)}: failed: {self.failed[job]}", flush=True)
            return
        score = points(result)
        told = f"diverged: {result['error']}" if score is None else f"{result['metric']} {score:.2f}"
        print(f"{_describe(job)}: {told} in {result['wall_s']:.0f} s", flush=True)

    def _reason(self, job: Job, code: int) -> str:
        work = self.store.work(job)
        log = work.with_name(f"{work.name}.{LOG}")
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return said or f"its process ended with code {code}"

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.running.values():
            process.terminate()  # all of them first, so that they save at the same time
        for process in self.running.values():
            process.join(MAX_SAVE_S)
            process.kill()
            process.join()
            process.close()
        self.running.clear()


def _describe(job: Job) -> str:
    kind = "tuning seed" if job.tuning else "seed"
    return f"{time.strftime('%H:%M')}  {job.workload}  {job.variant}  lr {job.lr:g}  {kind} {job.seed}"
