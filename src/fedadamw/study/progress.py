"""Progress of a study: a bar for each running process on a terminal, else a line for each ended run."""

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedadamw.io.escaping import escape_text
from fedadamw.report.metrics import describe_last_score, describe_scores
from fedadamw.study.plan import Run
from fedadamw.study.results import variant_name
from fedadamw.study.workers import EndedRun

BARS_S = 0.5  # between two updates of the bars


class StudyProgress:
    """Prints the progress of a study; nothing if quiet.

    runs: all runs of the study; none if they are not known in advance.
    """

    def __init__(self, runs: Sequence[Run], *, quiet: bool) -> None:
        self.runs, self.quiet = runs, quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._total_task: TaskID | None = None
        self._runs_before = sum(run.done for run in runs)
        self._rounds_before = sum(run.experiment.training.rounds for run in runs if run.done)
        self._printed = 0  # ended runs
        self._next_update = 0.0

    def __enter__(self) -> "StudyProgress":
        if self.quiet:
            return self
        if self._runs_before:
            print(f"{self._runs_before} of {len(self.runs)} runs are done already", flush=True)
        if sys.stdout.isatty():
            self._start_bars()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, running: Iterable[Run], ended: Sequence[EndedRun]) -> None:
        """Show the running runs, and print those that ended since the last call."""
        if self.quiet:
            return
        for number, end in enumerate(ended[self._printed :], start=self._printed + 1):
            self._print(end, number)
        self._printed = len(ended)
        if self._bars is not None and time.monotonic() >= self._next_update:
            self._next_update = time.monotonic() + BARS_S
            self._update_bars(list(running), ended)

    def _start_bars(self) -> None:
        description, status = (
            TextColumn(part, markup=False) for part in ("{task.description}", "{task.fields[status]}")
        )
        columns = (description, BarColumn(bar_width=24), status)
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(compact=True))
        self._bars = Progress(*columns, *times, console=Console(highlight=False, markup=False), refresh_per_second=4)
        self._bars.start()
        self._total_task = self._bars.add_task("all runs", total=None, completed=self._rounds_before, status="")

    def _print(self, end: EndedRun, number: int) -> None:
        place = f"{self._runs_before + number}/{len(self.runs)}" if self.runs else f"{number}"
        line = f"{place}  {_describe(end.run)}: {end.error or _describe_result(end.run)}"
        if self._bars is not None:
            self._bars.print(escape_text(line))
        else:
            print(escape_text(line), flush=True)

    def _update_bars(self, running: Sequence[Run], ended: Sequence[EndedRun]) -> None:
        assert self._bars is not None
        assert self._total_task is not None
        names = {run.name for run in running}
        for name in [name for name in self._tasks if name not in names]:
            self._bars.remove_task(self._tasks.pop(name))
        done = self._rounds_before + sum(end.run.experiment.training.rounds for end in ended)
        done += sum(self._update_bar(run) for run in running)
        total = sum(run.experiment.training.rounds for run in self.runs) if self.runs else None
        status = f"{len(ended)} trials"
        if self.runs:
            status = f"{self._runs_before + len(ended)} of {len(self.runs)} runs"
        self._bars.update(self._total_task, completed=done, total=total, status=status)

    def _update_bar(self, run: Run) -> int:
        """Update the bar of a running run; returns the number of its rounds done."""
        assert self._bars is not None
        records = run.records
        if run.name not in self._tasks:
            total = run.experiment.training.rounds
            self._tasks[run.name] = self._bars.add_task(_describe(run), total=total, status="")
        status = f"round {len(records)}  {describe_last_score(records)}"
        self._bars.update(self._tasks[run.name], completed=len(records), status=status)
        return len(records)


def _describe(run: Run) -> str:
    """Return a run's variant and seed."""
    return f"{variant_name(run.label)}, seed {run.experiment.seed}"


def _describe_result(run: Run) -> str:
    """Return the final scores of a finished run, and its time."""
    records = run.records
    seconds = sum(record["wall_s"] for record in records)
    scores = ", ".join(f"{name} {value}" for name, value in describe_scores(records[-1]).items())
    return f"{scores} in {seconds:.0f} s".lstrip()
