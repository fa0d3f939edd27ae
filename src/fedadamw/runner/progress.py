"""Shows a run's progress: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import cast

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedadamw.engine.record import Record
from fedadamw.report.metrics import describe_scores
from fedadamw.report.run_files import RecordDict
from fedadamw.report.virtual_time import format_virtual
from fedadamw.settings.training import TrainingSettings

MAX_LINES = 20  # about this many per run without a terminal


class Progress:
    """Shows each round of a run on standard output; nothing when quiet."""

    def __init__(self, training: TrainingSettings, *, quiet: bool) -> None:
        self.rounds = training.rounds
        self.quiet = quiet
        self._bar = self._live_bar() if not quiet and sys.stdout.isatty() else None
        self._every = -(-self.rounds // MAX_LINES)
        self._scores: dict[str, str] = {}  # the last ones, by name
        self._begin, self._clients = time.perf_counter(), 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, done: int) -> None:
        """Begin after `done` rounds, once data and model are loaded."""
        self._begin = time.perf_counter()
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=self.rounds, completed=done, status="")
        elif done and not self.quiet:
            print(f"resumed after round {done} of {self.rounds}", flush=True)

    def round(self, record: Record) -> None:
        """Show one finished round."""
        if self.quiet:
            return
        self._clients += record.clients + record.rejected
        self._scores |= describe_scores(cast(RecordDict, vars(record)))
        scores = "".join(f"{name} {value}  " for name, value in self._scores.items())
        speed = self._clients / max(time.perf_counter() - self._begin, 1e-9)
        rejected = f"  rejected {record.rejected}" if record.rejected else ""
        loss = "" if record.train_loss is None else f"loss {record.train_loss:.4f}  "
        epsilon = "" if record.epsilon is None else f"epsilon {record.epsilon:.3g}  "
        clock = "" if record.virtual_s is None else f"virtual {format_virtual(record.virtual_s)}  "
        status = f"{loss}{scores}{epsilon}{clock}{speed:.1f} clients/s{rejected}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=record.round, status=status)
        elif record.round % self._every == 0 or record.round in (1, self.rounds) or record.rejected:
            print(f"round {record.round}/{self.rounds}  {status}", flush=True)

    def stop(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.stop()

    @staticmethod
    def _live_bar() -> Bar:
        columns = (
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
        )
        return Bar(*columns, console=Console(highlight=False), refresh_per_second=4)
