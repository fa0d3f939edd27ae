"""Compare the ways to average adapters (lora.aggregate) on SST-2 with MiniLM, at two Dirichlet concentrations.

Ten of the twenty clients train in a round. Each run has a folder of its own in runs/benchmarks/lora-means and goes on
there if it was stopped; one that is finished is not run again. When all are, the record is written.

    python -m benchmarks.measure.lora_means --data ../shared/data/glue-sst2 --workers 2 [--record]

With --try all runs are of two rounds of two steps on some of the texts: to see that everything works.
"""

import json
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.pages.lora_means import describe
from fedadamw.checkpoint import write_atomically
from fedadamw.report.metrics import score
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

WHAT, DEVICE, RECIPE = "lora-means", "cpu", "small/sst2-minilm-lora"
TRIAL = (
    "training.rounds=2",
    "training.steps=2",
    "data.max_train=2000",
    "data.max_test=100",
    "training.evaluate_every=1",
)
AGGREGATES = ("factors", "frozen-a", "exact", "residual", "alternate")
CONCENTRATIONS, SEEDS, ROUNDS, CLIENTS, STEPS, BATCH = (0.1, 0.8), 3, 40, 10, 5, 8


class Job(NamedTuple):
    """One run."""

    concentration: float
    aggregate: str
    seed: int
    trial: bool

    @property
    def folder(self) -> Path:
        """Where it runs; its result is the file beside it."""
        name = f"dir{self.concentration:g}-{self.aggregate}-seed{self.seed}-{ROUNDS}-rounds"
        return records.SCRATCH / (f"{WHAT}-trial" if self.trial else WHAT) / name

    @property
    def file(self) -> Path:
        """Where its result is, once it is finished."""
        return self.folder.with_name(f"{self.folder.name}.json")


def jobs(seeds: int, *, trial: bool) -> Iterator[Job]:
    """Yield all runs, the first seed's first, so that a stopped comparison has whole seeds."""
    for seed, concentration, aggregate in product(range(seeds), CONCENTRATIONS, AGGREGATES):
        yield Job(concentration, aggregate, seed, trial)


def run(job: Job, data: str) -> None:
    """Run one training with one thread, or what is left of it, and write its result."""
    settings = [
        f"partition.concentration={job.concentration}",
        f"lora.aggregate={job.aggregate}",
        f"seed={job.seed}",
        f"training.rounds={ROUNDS}",
        f"training.clients_per_round={CLIENTS}",
        f"training.steps={STEPS}",
        f"training.batch_size={BATCH}",
        "training.evaluate_every=10",
        f"data.source={data}",
        "checkpoint_every=1",
        "threads=1",
        "device=cpu",
        *(TRIAL if job.trial else ()),
    ]
    folder = RunFolder(job.folder)
    execute(load(RECIPE, settings), folder, resume=True, report=False)
    write_atomically(job.file, (json.dumps(result(job, folder.records()), indent=1) + "\n").encode())


def result(job: Job, rounds: list[RecordDict]) -> dict[str, Any]:
    """Return what the record keeps of a run: the score in its evaluated rounds, bytes a client, seconds."""
    evaluated = [(record["round"], score(record)) for record in rounds if score(record) is not None]
    clients = sum(record["clients"] for record in rounds)
    return {
        "concentration": job.concentration,
        "aggregate": job.aggregate,
        "seed": job.seed,
        "commit": commit(),
        "round": [round_ for round_, _ in evaluated],
        "score": [round(float(value or 0.0), 6) for _, value in evaluated],
        "up_bytes_a_client": sum(record["up_bytes"] for record in rounds) / clients,
        "down_bytes_a_client": sum(record["down_bytes"] for record in rounds) / clients,
        "wall_s": round(sum(record["wall_s"] for record in rounds), 1),
    }


def main() -> None:
    parser = new_parser(__doc__, devices=(DEVICE,))
    parser.add_argument("--data", default="nyu-mll/glue", help="a folder of SST-2's files, or a hub id")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--try", action="store_true", dest="trial", help="two short rounds of each; nothing is recorded"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    wanted = list(jobs(args.seeds, trial=args.trial))
    missing = [job for job in wanted if not job.file.exists()]
    with ProcessPoolExecutor(args.workers) as pool:
        running = {pool.submit(run, job, args.data): job for job in missing}
        for future in as_completed(running):
            future.result()
            done = json.loads(running[future].file.read_text())
            print(f"{running[future].folder.name}: {done['score'][-1]:.1%} in {done['wall_s']:.0f} s", flush=True)
    content = {
        "device": f"cpu, {platform.machine()}, 1 thread a run",
        "torch": torch.__version__,
        "recipe": RECIPE,
        "clients_per_round": CLIENTS,
        "rounds": ROUNDS,
        "steps": STEPS,
        "batch_size": BATCH,
        "runs": [json.loads(job.file.read_text()) for job in wanted],
    }
    if args.trial:
        print(describe({**content, "rounds": 2, "steps": 2, "batch_size": BATCH}))
    else:
        records.write(WHAT, DEVICE, content, record=args.record)


if __name__ == "__main__":
    main()
