"""Progress of a measurement: a bar on a terminal, else a line for each part that ends."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedadamw.io.escaping import escape_text


class Progress:
    """Shows how far a measurement is, on standard output; nothing when quiet.

    total: amount of work, in any unit.
    """

    def __init__(self, total: float, *, quiet: bool) -> None:
        self.total, self._done, self._begin = total, 0.0, time.perf_counter()
        self.quiet = quiet
        live = not quiet and sys.stdout.isatty()
        self._bar = Bar(*_columns(), console=Console(highlight=False), refresh_per_second=4) if live else None

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=self.total, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: float, status: str) -> None:
        """Count work that is done; `status` says what is going on."""
        self._done += work
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, status=escape_text(status))

    def end_part(self, text: str) -> None:
        """Say, where there is no bar, that a part has ended."""
        if self._bar is None and not self.quiet:
            share, seconds = self._done / self.total, time.perf_counter() - self._begin
            print(f"{share:4.0%}  {seconds:4.0f} s  {escape_text(text)}", flush=True)


def _columns() -> tuple[BarColumn | TextColumn | TimeRemainingColumn, ...]:
    return (
        TextColumn("{task.percentage:3.0f}%"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[status]}", markup=False),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
    )


class Phases:
    """Shows the parts of a measurement, whose work is known only when they begin: call it with (what, done, in all)."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._what, self._done = "", 0
        self._progress: Progress | None = None

    def __enter__(self) -> "Phases":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.__exit__(kind, error, trace)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` are done of the part `what`."""
        if what != self._what or self._progress is None:
            self.__exit__(None, None, None)
            self._what, self._done = what, 0
            self._progress = Progress(total, quiet=self.quiet).__enter__()
        self._progress.advance(done - self._done, what)
        self._done = done
        if done == total:
            self._progress.end_part(what)
