"""Rewrites a run's page while the run goes on, seldom enough to cost little, and when it stops or fails.

A page that cannot be written is reported once, and the run goes on.
"""

import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from fedadamw.report.run_files import RecordDict
from fedadamw.report.run_status import RunStatus, describe_resuming, describe_running, describe_stopped, round_seconds
from fedadamw.runner.folder import RunFolder

if TYPE_CHECKING:
    from fedadamw.report.run_page import RunPage

MIN_PAUSE_S = 5.0  # between two pages
PAUSE_PER_COST = 100  # a page takes at most 1% of the time


class LivePage:
    """The page of a run of `rounds` rounds; used as a context around its rounds.

    open_page: prepares the page; called before it is first written, since it imports the charts' library.
    """

    def __init__(self, folder: RunFolder, rounds: int, open_page: Callable[[], "RunPage"], *, enabled: bool) -> None:
        self.folder, self.rounds, self.enabled = folder, rounds, enabled
        self._open, self._warned = open_page, False
        self._page: RunPage | None = None
        self._pause = MIN_PAUSE_S
        self._due = time.perf_counter() + self._pause

    def update(self) -> None:
        """Write the page of a running run, if that is due; called after each round."""
        if not self.enabled or time.perf_counter() < self._due:
            return
        self._write(self._describe_running)
        self._due = time.perf_counter() + self._pause

    def __enter__(self) -> "LivePage":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the page of what there is, if that can be: the error that ended the run is reported, and not this one.

        The page of a run that ended well is written with its curves.
        """
        if not self.enabled or error is None:
            return
        stopped = isinstance(error.__cause__ or error, KeyboardInterrupt)
        why = "" if stopped else (str(error) or type(error).__name__).splitlines()[0]
        resume, self._warned = describe_resuming(self.folder.path), True
        self._write(lambda records: RunStatus(describe_stopped(len(records), self.rounds, resume, why)))

    def _describe_running(self, records: list[RecordDict]) -> RunStatus:
        refresh_s = max(self._pause, round_seconds(records), 1.0)
        return RunStatus(describe_running(records, self.rounds), refresh_s, describe_resuming(self.folder.path))

    def _write(self, describe: Callable[[list[RecordDict]], RunStatus]) -> None:
        """Write the page, and find out how long to wait until the next."""
        try:
            records = self.folder.records()
            if not records:
                return
            if self._page is None:
                self._page = self._open()
            begin = time.perf_counter()
            self._page.write(records, describe(records))
            self._pause = max(MIN_PAUSE_S, PAUSE_PER_COST * (time.perf_counter() - begin))
        except Exception as error:  # whatever it is, the run is worth more than its page
            if not self._warned:
                warnings.warn(f"report.html was not written: {error or type(error).__name__}", stacklevel=2)
            self._warned = True
