"""Runs in processes of their own, several at a time: if one fails or is killed, the others continue."""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NamedTuple

from fedadamw.runner.fork_server import start_fork_server, without_main_module
from fedadamw.study.child import LOG_FILE, run_child
from fedadamw.study.plan import Run

POLL_S = 0.2
MAX_SAVE_S = 60.0  # that a stopped run may take to write its checkpoint


class EndedRun(NamedTuple):
    """A run whose process has ended."""

    run: Run
    error: str | None  # what went wrong, in one line


class Workers:
    """At most `count` processes, each with a run; leaving the block stops the remaining ones, which can be resumed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.running: dict[str, tuple[Run, BaseProcess]] = {}
        self._context = start_fork_server()

    @property
    def free(self) -> bool:
        """Whether another run can start now."""
        return len(self.running) < self.count

    def start(self, run: Run) -> None:
        """Start a run, or resume it."""
        process = self._context.Process(target=run_child, args=(run.experiment.to_yaml(), str(run.folder.path)))
        with without_main_module():
            process.start()
        self.running[run.name] = run, process

    def collect_ended(self) -> list[EndedRun]:
        """Return the runs that ended since the last call."""
        ended = []
        for run, process in list(self.running.values()):
            if process.exitcode is not None:
                error = None if run.done else f"failed: {_describe_failure(run, process.exitcode)}"
                ended.append(EndedRun(run, error))
                del self.running[run.name]
                process.close()
        return ended

    def stop(self, run: Run) -> None:
        """Stop a run before its last round; it leaves a checkpoint."""
        _terminate(self.running[run.name][1])
        del self.running[run.name]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, process in self.running.values():
            process.terminate()  # all of them first, so that they save at the same time
        for _, process in self.running.values():
            _terminate(process)
        self.running.clear()


def run_all(
    runs: Sequence[Run], workers: Workers, on_poll: Callable[[Iterable[Run], Sequence[EndedRun]], None]
) -> list[EndedRun]:
    """Run all that are not done; `on_poll` is called repeatedly with the running and the ended ones."""
    waiting = [run for run in runs if not run.done]
    ended: list[EndedRun] = []
    while waiting or workers.running:
        while waiting and workers.free:
            workers.start(waiting.pop(0))
        ended += workers.collect_ended()
        on_poll([run for run, _ in workers.running.values()], ended)
        time.sleep(POLL_S)
    return ended


def _terminate(process: BaseProcess) -> None:
    """Ask a process to save and stop; kill it if it does not."""
    process.terminate()  # harmless if it was asked before
    process.join(MAX_SAVE_S)
    process.kill()
    process.join()
    process.close()


def _describe_failure(run: Run, code: int) -> str:
    """Return why a process ended: the signal that killed it, or the last line of its log."""
    if code < 0:
        return f"its process was killed ({signal.Signals(-code).name})"
    log = run.folder.path / LOG_FILE
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"its process ended with code {code}")
