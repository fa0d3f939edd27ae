"""Executes runs in separate processes, several at a time; a failing run does not affect the others."""

import signal
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import NamedTuple

from fedadamw.runner.fork_server import start_fork_server
from fedadamw.study.child import LOG, work
from fedadamw.study.plan import Run

TICK_S = 0.2
SAVE_S = 60.0  # that a stopped run may take for its checkpoint


class Ended(NamedTuple):
    """A run whose process is over."""

    run: Run
    error: str | None  # what went wrong, in one line


class Workers:
    """At most `count` processes, each with a run; leaving the block stops those that are left, resumable."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.running: dict[str, tuple[Run, BaseProcess]] = {}
        self._context = start_fork_server()

    @property
    def free(self) -> bool:
        """Whether another run can start now."""
        return len(self.running) < self.count

    def start(self, run: Run) -> None:
        """Start or resume a run."""
        process = self._context.Process(target=work, args=(run.experiment.to_yaml(), str(run.folder.path)))
        process.start()
        self.running[run.name] = run, process

    def ended(self) -> list[Ended]:
        """The runs that are over since the last call."""
        over = []
        for run, process in list(self.running.values()):
            if process.exitcode is not None:
                over.append(Ended(run, None if run.done else f"failed: {_last_words(run, process.exitcode)}"))
                del self.running[run.name]
                process.close()
        return over

    def stop(self, run: Run) -> None:
        """Stop a run early; its checkpoint stays."""
        _end(self.running[run.name][1])
        del self.running[run.name]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, process in self.running.values():
            process.terminate()  # all at once, so that they save at the same time
        for _, process in self.running.values():
            _end(process)
        self.running.clear()


def run_all(
    runs: Sequence[Run], workers: Workers, show: Callable[[Iterable[Run], Sequence[Ended]], None]
) -> list[Ended]:
    """Every run that is not done yet; `show` gets those running and those over, again and again."""
    waiting = [run for run in runs if not run.done]
    over: list[Ended] = []
    while waiting or workers.running:
        while waiting and workers.free:
            workers.start(waiting.pop(0))
        over += workers.ended()
        show([run for run, _ in workers.running.values()], over)
        time.sleep(TICK_S)
    return over


def _end(process: BaseProcess) -> None:
    """Ask a process to save and stop; kill it if it does not."""
    process.terminate()  # a second one does no harm
    process.join(SAVE_S)
    process.kill()
    process.join()
    process.close()


def _last_words(run: Run, code: int) -> str:
    """Return why a process ended: the signal that killed it, or the last line of its log."""
    if code < 0:
        return f"its process was killed ({signal.Signals(-code).name})"
    log = run.folder.path / LOG
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"its process ended with code {code}")
