"""Shows a study's progress: a bar per running process on a terminal, a line per finished run elsewhere."""

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedadamw.io.escaping import escape_text
from fedadamw.report.metrics import in_words
from fedadamw.study.plan import Run
from fedadamw.study.results import name_of
from fedadamw.study.workers import Ended


class StudyProgress:
    """Display that is called repeatedly with the running and the finished runs; prints nothing if quiet.

    runs: all runs of the study, empty if they are not known beforehand.
    """

    def __init__(self, runs: Sequence[Run], *, quiet: bool) -> None:
        self.runs, self.quiet = runs, quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._done = sum(run.experiment.training.rounds for run in runs if run.done)
        self._said = 0
        self._whole: TaskID | None = None
        self._next_look = 0.0
        self._before = sum(run.done for run in runs)

    def __enter__(self) -> "StudyProgress":
        if self.quiet:
            return self
        if self._before:
            print(f"{self._before} of {len(self.runs)} runs are done already", flush=True)
        if sys.stdout.isatty():
            description, status = (
                TextColumn(part, markup=False) for part in ("{task.description}", "{task.fields[status]}")
            )
            columns = (description, BarColumn(bar_width=24), status)
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True))
            self._bars = Progress(
                *columns, *times, console=Console(highlight=False, markup=False), refresh_per_second=4
            )
            self._bars.start()
            self._whole = self._bars.add_task("all runs", total=None, completed=self._done, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, running: Iterable[Run], over: Sequence[Ended]) -> None:
        if self.quiet:
            return
        for number, end in enumerate(over[self._said :], start=self._said + 1):
            self._say(end, number)
        self._said = len(over)
        if self._bars is not None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + 0.5
            self._look(list(running), over)

    def _say(self, end: Ended, number: int) -> None:
        run = end.run
        place = f"{number}" if not self.runs else f"{self._before + number}/{len(self.runs)}"
        place += f"  {variant_of(run)}"
        if end.error:
            line = f"{place}: {end.error}"
        else:
            records = run.records
            wall = sum(record["wall_s"] for record in records)
            line = f"{place}: {in_words(records[-1]['test_metrics'] or {})} in {wall:.0f} s"
        if self._bars is not None:
            self._bars.print(escape_text(line))
        else:
            print(escape_text(line), flush=True)

    def _look(self, running: Sequence[Run], over: Sequence[Ended]) -> None:
        assert self._bars is not None
        assert self._whole is not None
        now = {run.name: run for run in running}
        for name in [name for name in self._tasks if name not in now]:
            self._bars.remove_task(self._tasks.pop(name))
        under_way = 0
        for name, run in now.items():
            records = run.records
            under_way += len(records)
            if name not in self._tasks:
                total = run.experiment.training.rounds
                self._tasks[name] = self._bars.add_task(variant_of(run), total=total, status="")
            seen = [r["test_metrics"] for r in records if r["test_metrics"]]
            status = f"round {len(records)}  " + (in_words(seen[-1]) if seen else "")
            self._bars.update(self._tasks[name], completed=len(records), status=status)
        done = self._done + sum(end.run.experiment.training.rounds for end in over)
        status = f"{len(over)} trials" if not self.runs else f"{self._before + len(over)} of {len(self.runs)} runs"
        rounds = None if not self.runs else sum(run.experiment.training.rounds for run in self.runs)
        self._bars.update(self._whole, completed=done + under_way, total=rounds, status=status)


def variant_of(run: Run) -> str:
    """Return a run's variant and seed as text."""
    return f"{name_of(run.label)}, seed {run.experiment.seed}"
