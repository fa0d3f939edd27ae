"""One run started from Python: its folder, ranks, callbacks and progress, around the runner's `execute`."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from fedadamw.api.callbacks import Callback, Callbacks
from fedadamw.api.forked_ranks import forked_ranks
from fedadamw.api.result import Result, read_records
from fedadamw.engine.record import Record
from fedadamw.engine.simulate import Simulation
from fedadamw.prepare.simulation import Prepared
from fedadamw.runner.execute import Interrupted, execute, follow
from fedadamw.runner.folder import RunFolder
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
    observers = Callbacks(callbacks)
    sampled = experiment.training.clients_per_round
    check(1 <= ranks <= sampled, f"ranks={ranks}: give 1 to {sampled}, the clients per round")
    size = int(os.environ.get("WORLD_SIZE", ranks))
    check(size == 1 or not observers.see_clients, "a callback with on_client sees all clients of a round: one rank")
    check(not resume or out is not None, "resume=True needs out, the folder of the run")
    if int(os.environ.get("RANK", "0")) > 0:
        return _follow(experiment, prepare_run)
    if out is not None:
        return _Leader(experiment, RunFolder(Path(out)), prepare_run, observers, resume=resume, quiet=quiet).run(ranks)
    experiment = experiment.model_copy(update={"checkpoint_every": experiment.training.rounds})  # nothing resumes there
    scratch = tempfile.mkdtemp(prefix="fedadamw-")
    try:
        result = _Leader(experiment, RunFolder(Path(scratch)), prepare_run, observers, resume=False, quiet=quiet).run(
            ranks
        )
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return replace(result, temporary=True)


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
        """Run rank 0; on Ctrl-C save, and raise KeyboardInterrupt."""
        try:
            with Progress(self.experiment.training, quiet=self.quiet) as progress:
                simulation = self._execute(progress)
        except Interrupted as stopped:
            raise KeyboardInterrupt(f"{stopped} in {self.folder.path}; resume=True goes on") from None
        return _result(simulation, read_records(self.folder), self.folder.path)

    def _execute(self, progress: Progress) -> Simulation:
        started: list[Simulation] = []

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
    simulation.load()
    simulation.workspace.release()
    return Result(simulation.workspace.module.eval(), records, simulation.training.rounds, folder)
