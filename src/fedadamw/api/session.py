"""One run started from Python: its folder, ranks, callbacks and progress, around the runner's `execute`."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fedadamw.api.callbacks import Callback, Callbacks
from fedadamw.api.result import Result, read_records
from fedadamw.engine.record import Record
from fedadamw.engine.simulate import Simulation
from fedadamw.prepare.device import uses_gpu
from fedadamw.prepare.simulation import Prepared
from fedadamw.runner.execute import Interrupted, execute, follow
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.forked_ranks import forked_ranks
from fedadamw.runner.progress import Progress
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check

AnyCallback = Callback | Callable[[Record], object]
Prepare = Callable[[Experiment], Prepared]


def run_session(
    experiment: Experiment,
    prepare_run: Prepare,
    *,
    out: str | Path | None,
    resume: bool,
    ranks: int,
    callbacks: Iterable[AnyCallback],
    quiet: bool,
) -> Result:
    """Run `experiment` to its end, and return the trained model with its records; see `simulate`."""
    observers = Callbacks(callbacks, of_clients=not experiment.tests_model)
    sampled = experiment.training.clients_per_round
    check(1 <= ranks <= sampled, f"ranks={ranks}: give 1 to {sampled}, the clients per round")
    size = int(os.environ.get("WORLD_SIZE", ranks))
    check(size == 1 or not observers.see_clients, "a callback with on_client sees all clients of a round: one rank")
    hint = f"set device='cpu', or start the script with torchrun --nproc-per-node {ranks}"
    check(ranks == 1 or not uses_gpu(experiment), f"ranks={ranks} share a CPU; {hint}")
    check(not resume or out is not None, "resume=True needs out, the folder of the run")
    with _own_torch_settings():
        if size > 1 and int(os.environ.get("RANK", "0")) > 0:
            return _follow(experiment, prepare_run)
        if out is None:
            return _run_without_folder(experiment, prepare_run, observers, ranks, quiet=quiet)
        return _Leader(experiment, RunFolder(Path(out)), prepare_run, observers, resume=resume, quiet=quiet).run(ranks)


def _run_without_folder(
    experiment: Experiment, prepare_run: Prepare, observers: Callbacks, ranks: int, *, quiet: bool
) -> Result:
    """Run in a temporary folder, which is deleted with the result."""
    experiment = experiment.model_copy(update={"checkpoint_every": experiment.training.rounds})  # nothing resumes there
    scratch = tempfile.mkdtemp(prefix="fedadamw-")
    try:
        leader = _Leader(experiment, RunFolder(Path(scratch)), prepare_run, observers, resume=False, quiet=quiet)
        return replace(leader.run(ranks), temporary=True)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("stopped; without out no file is kept") from None
        raise


@contextmanager
def _own_torch_settings() -> Iterator[None]:
    """A block that may set torch's threads and precision: the caller's are put back at its end."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32


class _Leader:
    """Rank 0, which writes the files, shows the progress and tells the callbacks."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        prepare_run: Prepare,
        observers: Callbacks,
        *,
        resume: bool,
        quiet: bool,
    ) -> None:
        self.experiment, self.folder, self.prepare_run = experiment, folder, prepare_run
        self.observers, self.resume, self.quiet = observers, resume, quiet

    def run(self, ranks: int) -> Result:
        """Run to the end in so many processes."""
        if ranks == 1:
            return self._lead()
        with forked_ranks(ranks, lambda: follow(self.experiment, prepare_run=self.prepare_run)):
            return self._lead()

    def _lead(self) -> Result:
        """Run rank 0; on Ctrl-C save, and raise KeyboardInterrupt. An error leaves the model of the last round."""
        started: list[Simulation] = []
        try:
            with Progress(self.experiment.training, quiet=self.quiet) as progress:
                simulation = self._execute(progress, started)
        except Interrupted as stopped:
            _give_back(started[0])
            raise KeyboardInterrupt(f"{stopped} in {self.folder.path}; resume=True goes on") from None
        except BaseException:
            for simulation in started:
                _give_back(simulation)
            raise
        if self.folder.ended and not self.quiet:
            print(self.folder.ended, flush=True)
        return _result(simulation, read_records(self.folder), self.folder.path)

    def _execute(self, progress: Progress, started: list[Simulation]) -> Simulation:
        """Run rank 0; the simulation is put into `started` as soon as there is one."""

        def on_start(simulation: Simulation) -> bool:
            started.append(simulation)
            progress.start(simulation.state.round)
            return self.observers.start(read_records(self.folder)[: simulation.state.round])

        def on_round(record: Record) -> bool:
            progress.round(record)
            return self.observers.end_round(record, started[0].workspace.module)

        return execute(
            self.experiment,
            self.folder,
            resume=self.resume,
            on_start=on_start,
            on_round=on_round,
            prepare_run=self.prepare_run,
            listeners=[self.observers.listen] if self.observers.see_clients else [],
        )


def _follow(experiment: Experiment, prepare_run: Prepare) -> Result:
    """Run a rank that torchrun started besides rank 0."""
    records: list[Record] = []
    return _result(follow(experiment, on_round=records.append, prepare_run=prepare_run), records, None)


def _result(simulation: Simulation, records: list[Record], folder: Path | None) -> Result:
    return Result(_give_back(simulation), records, simulation.training.rounds, folder)


def _give_back(simulation: Simulation) -> nn.Module:
    """Return the model with the weights of the last complete round, in memory of its own and in evaluation mode."""
    simulation.load()
    simulation.workspace.release()
    return simulation.workspace.module.eval()
