"""Run the jobs whose times other frameworks published, with their models and settings: see published_jobs/jobs.py.

FedAvg as they set it, and FedAdamW beside it. A job that fails is reported by name, and the others go on. Data:
`data/cifar10` and `data/femnist`, or folders that you name; published_jobs/femnist.py says which files it reads.

    python -m benchmarks.measure.published --device cuda [--record]
    python -m benchmarks.measure.published --only femnist --femnist flwrlabs/femnist --device cuda
    python -m benchmarks.measure.published --small              # a few rounds, to see that everything is there
"""

import argparse
import json
import time
from typing import Any

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from benchmarks.measure.published_jobs.jobs import ALGORITHMS, JOBS, Job
from fedadamw.api.simulate import simulate
from fedadamw.runner.manifest import commit, device_name
from fedadamw.validation import InputError

SMALL = {"rounds": 3, "clients_per_round": 2, "evaluate_every": 2, "evaluate_batch": 100}
SMALL_TEST = 100  # held-out samples


def main() -> None:
    args = parse()
    if args.one:
        print(json.dumps(measure(*args.one, source_of(args, args.one[0]), args)))
        return
    jobs: dict[str, Any] = {}
    for name in (args.only or ",".join(JOBS)).split(","):
        jobs[name] = {"title": JOBS[name].title, "sources": JOBS[name].sources, "algorithms": {}}
        for algorithm in ALGORITHMS:
            jobs[name]["algorithms"][algorithm] = result = try_job(name, algorithm, args)
            print(f"{JOBS[name].title:40} {algorithm:10} {describe(result)}", flush=True)
    content = {
        "commit": commit(),
        "device": device_name(torch.device(args.device)),
        "torch": torch.__version__,
        "small": args.small,
        "jobs": jobs,
    }
    records.write("published", args.device, content, record=args.record)
    if any("failed" in result for job in jobs.values() for result in job["algorithms"].values()):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    """The options; a record has all jobs in full."""
    parser = new_parser(__doc__)
    parser.add_argument("--only", help=f"some of the jobs: {','.join(JOBS)}")
    parser.add_argument("--cifar10", default="./data/cifar10", help="a folder or hub id with the splits train and test")
    parser.add_argument(
        "--femnist", default="./data/femnist", help="a folder with HDF5, JSON or Parquet files, or a hub id"
    )
    parser.add_argument("--small", action="store_true", help="a few rounds of a few clients")
    parser.add_argument("--rounds", type=int, help="another number of rounds")
    parser.add_argument("--stack", type=int, help="clients that train at once")
    parser.add_argument("--precision", default="float32", choices=("float32", "bf16"))
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which a run is given up")
    parser.add_argument("--one", nargs=2, metavar=("JOB", "ALGORITHM"), help="run this in this process")
    args = parser.parse_args()
    unknown = set((args.only or "").split(",")) - {"", *JOBS}
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} is unknown; use {', '.join(JOBS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if args.record and (args.only or args.small or args.rounds):
        parser.error("a record has all jobs in full: --record excludes --only, --small and --rounds")
    return args


def source_of(args: argparse.Namespace, job: str) -> str:
    """Where the data of a job is."""
    source: str = args.femnist if job == "femnist" else args.cifar10
    return source


def try_job(name: str, algorithm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a job in a process of its own; {"failed": why} if it fails, however it does."""
    passed = [f"--{option}={getattr(args, option)}" for option in ("device", "cifar10", "femnist", "precision")]
    passed += [f"--{option}={value}" for option in ("rounds", "stack") if (value := getattr(args, option))]
    passed += ["--small"] * args.small
    try:
        return run_again(__file__, [*passed, "--one", name, algorithm], limit_s=args.limit)
    except SystemExit as error:
        lines = str(error).partition(f"--one {name} {algorithm}: ")[2].strip().splitlines()
        return {"failed": lines[-1] if lines else "it ended without a message"}


def measure(name: str, algorithm: str, source: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a job in this process; return its settings, times in seconds, and scores of each evaluation."""
    job = JOBS[name]
    if args.small:
        job = job._replace(**SMALL)
    if args.rounds:
        job = job._replace(rounds=args.rounds)
    how = settings_of(job, algorithm, args)
    start = time.perf_counter()
    try:
        data = job.load(source)
        if args.small:
            inputs, labels = data.test
            data = data._replace(test=(inputs[:SMALL_TEST], labels[:SMALL_TEST]))
        loaded = time.perf_counter()
        result = simulate(job.model, *data, **how)
    except InputError as error:
        raise SystemExit(str(error)) from None
    ended = time.perf_counter()
    evaluated = [r for r in result.records if r.test_metrics is not None]
    only_trained = sorted(r.wall_s for r in result.records[1:] if r.test_metrics is None)
    return {
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "clients": len(data.clients),
        "train_samples": len(data.train[1]),
        "test_samples": len(data.test[1]),
        "settings": {key: value for key, value in how.items() if key not in ("metrics", "quiet")},
        "load_s": round(loaded - start, 2),
        "total_s": round(ended - loaded, 2),  # start-up of the engine, rounds, evaluations and the report
        "rounds_s": round(sum(r.wall_s for r in result.records), 2),  # of it, rounds with their evaluations
        "round_s": only_trained[len(only_trained) // 2] if only_trained else None,  # median, without evaluation
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if args.device == "cuda" else None,
        "rounds": [r.round for r in evaluated],
        "train_loss": [round(r.train_loss, 4) for r in evaluated],
        "accuracy": [round(r.test_metrics["accuracy"], 4) for r in evaluated if r.test_metrics],
    }


def settings_of(job: Job, algorithm: str, args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `simulate`."""
    own = ALGORITHMS[algorithm]
    settings = {
        "training.weighting": job.weighting,
        "training.evaluate_every": job.evaluate_every,
        "training.evaluate_batch": job.evaluate_batch,
        "training.precision": args.precision,
        "checkpoint_every": job.rounds,  # theirs write none
        "stack": args.stack,
    }
    how = {"algorithm": algorithm, "metrics": {"accuracy": accuracy}, "device": args.device, "quiet": True}
    return {**how, **job.settings, **own, "settings": {**settings, **own["settings"]}}


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The share of samples whose largest output is their class."""
    return (outputs.argmax(1) == targets).double().mean()


def describe(result: dict[str, Any]) -> str:
    """A run in a line."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    return f"{result['total_s']:8.1f} s, {result['accuracy'][-1]:.1%} after round {result['rounds'][-1]}"


if __name__ == "__main__":
    main()
