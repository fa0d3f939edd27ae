"""Runs of which each leaves one file: finished ones are not repeated, some run at a time."""

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

Job = TypeVar("Job", bound=Hashable)


def run_all(
    missing: Callable[[], Iterable[Job]], run: Callable[[Job], None], workers: int, describe: Callable[[Job], str]
) -> None:
    """Run what is missing, `workers` at a time, until nothing is; print a line on each that has ended.

    missing: the runs that can start now, in order, asked again after each one. run: in a process; writes the file.
    """
    running: dict[Future[None], Job] = {}
    with ProcessPoolExecutor(workers) as pool:
        while True:
            for job in missing():
                if len(running) == workers:
                    break
                if job not in running.values():
                    running[pool.submit(run, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                future.result()
                print(describe(job), flush=True)
