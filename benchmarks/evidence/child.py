"""One run in a process of its own, forked from a server that has imported the libraries."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from benchmarks.evidence.jobs import Job, experiment
from benchmarks.evidence.store import Result, Store
from fedadamw.engine.record import DivergedError
from fedadamw.report.metrics import find_evaluations, main_metric, score
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.execute import Interrupted, execute
from fedadamw.runner.folder import FolderInUseError, RunFolder
from fedadamw.runner.fork_server import end_with_parent
from fedadamw.runner.signals import stop_once
from fedadamw.validation import InputError

STOPPED = 143
ELSEWHERE = 75  # exit code of a run that another session has
LOG = "log.txt"


def train(job: Job, data: str, folder: str) -> None:
    """Run or resume `job`; its result goes into the store in `folder`, what it prints into log.txt beside its work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent stops us
    signal.signal(signal.SIGTERM, stop_once)
    end_with_parent()
    store = Store(Path(folder))
    work = RunFolder(store.work(job))
    work.path.mkdir(parents=True, exist_ok=True)
    with open(work.path.with_name(f"{work.path.name}.{LOG}"), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            store.write(job, run(job, Path(data), work))
        except FolderInUseError:
            sys.exit(ELSEWHERE)
        except InputError as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(1)
        except (Interrupted, KeyboardInterrupt):
            sys.exit(STOPPED)
    shutil.rmtree(work.path, ignore_errors=True)
    Path(log.name).unlink(missing_ok=True)


def run(job: Job, data: Path, work: RunFolder) -> Result:
    """Run `job` in its folder, or what is left of it, and return its result."""
    resumed, begun = work.started, [0.0]
    error = None
    try:
        execute(
            experiment(job, data),
            work,
            resume=True,
            report=False,
            on_start=lambda _: begun.__setitem__(0, time.process_time()),
        )
    except DivergedError as diverged:
        error = str(diverged)
    rounds_s = time.process_time() - begun[0]
    return result_of(job, work, error, cpu_s=None if resumed else round(rounds_s, 1), start_s=round(begun[0], 1))


def result_of(job: Job, work: RunFolder, error: str | None, *, cpu_s: float | None, start_s: float) -> Result:
    """Return what is kept of a run that has ended."""
    settings, manifest, rounds = experiment(job).training, work.read_manifest(), work.records()
    evaluated = [rounds[i] for i in find_evaluations(rounds)]
    return {
        **job._asdict(),  # type: ignore[typeddict-item]
        "error": error,
        "metric": main_metric(rounds) if evaluated else "",
        "rounds": settings.rounds,
        "round": [record["round"] for record in evaluated],
        "score": [_rounded(record) for record in evaluated],
        "train_loss": rounds[-1]["train_loss"] if rounds else None,
        "up_bytes_a_client": _bytes_a_client(rounds, "up_bytes"),
        "down_bytes_a_client": _bytes_a_client(rounds, "down_bytes"),
        "clients": settings.clients_per_round,
        "steps": settings.steps or 0,
        "wall_s": round(sum(record["wall_s"] for record in rounds), 1),
        "cpu_s": cpu_s,
        "start_s": start_s,
        "commit": manifest["commit"],
        "device": manifest["device"],
        "versions": manifest["versions"],
    }


def _rounded(record: RecordDict) -> float | None:
    found = score(record)
    return None if found is None else round(found, 6)


def _bytes_a_client(rounds: list[RecordDict], key: str) -> float:
    clients = sum(record["clients"] for record in rounds)
    total = sum(record["up_bytes"] if key == "up_bytes" else record["down_bytes"] for record in rounds)
    return round(total / clients, 1) if clients else 0.0
