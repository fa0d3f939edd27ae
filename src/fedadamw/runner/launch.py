"""How many ranks a run gets, and ranks as torchrun starts them, with its agent: for GPUs, and where nothing forks."""

import logging
import signal
from collections.abc import Callable

from fedadamw.data.row_parts import count_cores
from fedadamw.engine.ranks import RankLostError
from fedadamw.engine.round import ONE_BY_ONE
from fedadamw.prepare.device import uses_gpu
from fedadamw.runner.fork_server import end_with_parent, start_fork_server
from fedadamw.runner.signals import stop_once
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

MIN_STEPS = 2000  # local steps of a run from which several ranks save more time than they take to start
MIN_TEXT_STEPS = 100  # each takes longer


def choose_ranks(experiment: Experiment) -> int:
    """Return how many ranks to run on this machine's CPU: one per core is faster than one rank with many threads.

    One rank on a GPU, with several threads or stacking, if diagnostics, a robust mean, buffered aggregation or devices
    need all clients in one process, and for short runs.
    """
    t = experiment.training
    local = t.steps or 10 * (t.epochs or 1)
    minimum = MIN_TEXT_STEPS if experiment.data.is_text else MIN_STEPS
    short = t.rounds * t.clients_per_round * local < minimum
    one_process = t.diagnostics or t.mean != "weighted" or t.buffered or experiment.devices is not None
    if experiment.shards > 1:
        return experiment.shards
    if uses_gpu(experiment) or short or one_process or experiment.stack or (experiment.threads or 1) > 1:
        return 1
    return min(count_cores(), t.clients_per_round)


def check_ranks(experiment: Experiment, ranks: int) -> None:
    """Raise InputError if a run cannot be shared by so many processes."""
    sampled, shards = experiment.training.clients_per_round, experiment.shards
    most = sampled * shards
    check(ranks == 1 or not experiment.training.buffered, f"--ranks {ranks}: {ONE_BY_ONE}")
    check(ranks <= most, f"--ranks {ranks}: more than the {sampled} clients per round; use at most {most}")
    check(ranks % shards == 0, f"--ranks {ranks}: is not a multiple of shards={shards}")


def launch(ranks: int, target: Callable[..., None], *args: object) -> int:
    """Run `target(*args)` in `ranks` processes of one group; return the exit code of the first that failed, else 0.

    Ctrl-C and SIGTERM reach all of them (exit code 130 or 143). Raises RankLostError if one was killed. The processes
    are forks of a server that has the libraries loaded.
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
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are reported below
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
    except SignalException as request:
        return 128 + request.sigval
    except ValueError as error:
        raise InputError(f"--ranks {ranks}: {error}") from None
    return 0


def join(*, leads: bool) -> None:
    """Set up a new rank: it ends if the launcher is killed; the leading rank alone handles a request to stop."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once if leads else signal.SIG_IGN)  # the others end with it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # the fork server blocks it
