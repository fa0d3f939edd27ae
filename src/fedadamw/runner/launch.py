"""Ranks on this machine, started as torchrun starts them: by torch's elastic agent, rendezvous and environment."""

import logging
import signal
from collections.abc import Callable
from typing import Any

from fedadamw.engine.ranks import RankLostError
from fedadamw.prepare.device import count_cores, uses_gpu
from fedadamw.runner.fork_server import end_with_parent, start_fork_server
from fedadamw.runner.signals import stop_once
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError

STEPS_THAT_PAY = 2000  # local steps of a run above which starting ranks is worth its seconds
TEXT_STEPS_THAT_PAY = 100  # each takes longer


def ranks_that_pay(experiment: Experiment) -> int:
    """How many ranks a run on this machine's CPU should have: one a core with one thread each beat one with many.

    One where a GPU does the work, where more threads or stacking are given, where diagnostics or a robust mean want all
    clients in one place, and where the run is short.
    """
    t = experiment.training
    local = t.steps or 10 * (t.epochs or 1)
    pay = TEXT_STEPS_THAT_PAY if experiment.data.is_text else STEPS_THAT_PAY
    short = t.rounds * t.clients_per_round * local < pay
    alone = t.diagnostics or t.mean != "weighted"
    if uses_gpu(experiment) or short or alone or experiment.stack or (experiment.threads or 1) > 1:
        return 1
    return min(count_cores(), t.clients_per_round)


def launch(ranks: int, target: Callable[..., None], *args: Any) -> int:
    """Run `target(*args)` in `ranks` processes that can join one group; the exit code of the first that failed.

    Ctrl-C and SIGTERM reach all of them; 130 or 143 then. RankLostError where one was killed. The processes are forks
    of a server that has the libraries loaded.
    """
    start_fork_server()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [
        n
        for n in logging.root.manager.loggerDict
        if n.startswith(("torch.distributed.elastic", "torch.multiprocessing"))
    ]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what happened is said here
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="forkserver",
        run_id="fedadamw",
    )
    try:
        elastic_launch(config, target)(*args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        raise RankLostError(f"rank {rank} was killed ({signal.Signals(-failure.exitcode).name})") from None
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ValueError as error:
        raise InputError(f"--ranks {ranks}: {error}") from None
    return 0


def join(*, leads: bool) -> None:
    """In a rank, first of all: end where the launcher is killed; the one that leads stops when it is asked to, once."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once if leads else signal.SIG_IGN)  # the others end when it is gone
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # which the fork server blocks
