"""Ranks that are forks of this process, which is one of them itself: all have the libraries that it has imported.

Without a GPU this is how a command and a script start ranks: nothing is imported twice, and nobody waits for an agent
that watches them. Where processes cannot be forked, commands use launch.py.
"""

import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import torch.distributed as dist

from fedadamw.engine.ranks import TIMEOUT, RankLostError
from fedadamw.runner.fork_server import end_with_parent
from fedadamw.validation import check

STOP_S = 5.0  # that a rank may take to end


@contextmanager
def forked_ranks(count: int, follow: Callable[[], object]) -> Iterator[None]:
    """A block in which this process is rank 0 of `count`; the others are forks that call `follow`.

    For CPUs, one thread each. Raises InputError where processes cannot be forked; RankLostError with its reason if a
    fork fails. Ctrl-C and SIGTERM are for this process alone: the forks end with it.
    """
    _check_can_fork(count)
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        meeting = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedadamw-"))) / "meeting"
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        children = [_fork(rank, count, meeting, follow) for rank in range(1, count)]
        stack.callback(_end, children)
        stack.enter_context(_environment(0, count))
        stack.callback(_leave)
        if threading.current_thread() is threading.main_thread():
            stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
        _join(0, count, meeting)
        try:
            yield
        except RankLostError as error:
            reasons = [*_describe_killed(children), *(f.read_text() for f in sorted(meeting.parent.glob("rank-*")))]
            raise RankLostError(f"lost another rank ({'; '.join(reasons)})" if reasons else str(error)) from error


def can_fork() -> bool:
    """Whether this system forks processes safely once its libraries are loaded: macOS does not."""
    return "fork" in get_all_start_methods() and sys.platform != "darwin"


def _check_can_fork(count: int) -> None:
    hint = f"start the script with torchrun --nproc-per-node {count}"
    check("WORLD_SIZE" not in os.environ, f"ranks={count}: torchrun has started this process's ranks already")
    check(can_fork(), f"ranks={count}: this system does not fork processes safely; {hint}")
    check(not torch.cuda.is_initialized(), f"ranks={count}: a process that uses a GPU cannot be forked; {hint}")
    check(not dist.is_initialized(), f"ranks={count}: this process is in a process group already")


def _fork(rank: int, count: int, meeting: Path, follow: Callable[[], object]) -> ForkProcess:
    def run() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        end_with_parent()
        with _environment(rank, count):
            try:
                _join(rank, count, meeting)
                follow()
            except Exception as error:
                if not isinstance(error, RankLostError):
                    reason = " ".join(f"rank {rank}: {type(error).__name__}: {error}".split())
                    meeting.with_name(f"rank-{rank}").write_text(reason)
                os._exit(1)

    process = get_context("fork").Process(target=run, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: torch's are idle, and one is used from here
        process.start()
    return process


@contextmanager
def _environment(rank: int, count: int) -> Iterator[None]:
    """A block with torchrun's variables."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update({name: str(value) for name, value in own.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _join(rank: int, count: int, meeting: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count, timeout=TIMEOUT)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _describe_killed(children: list[ForkProcess]) -> list[str]:
    """Say which ranks were killed, and by which signal; the others may be still ending."""
    codes = enumerate((child.exitcode for child in children), 1)
    return [f"rank {rank} was killed ({signal.Signals(-code).name})" for rank, code in codes if code and code < 0]


def _end(children: list[ForkProcess]) -> None:
    for child in children:
        child.join(STOP_S)
        child.kill()
        child.join()
