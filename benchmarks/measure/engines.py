"""Measure seconds per round of the engines (loop, stacked clients, ranks) by model and sampled clients.

All engines train the same clients on the same batches; a run whose losses disagree stops the benchmark.

    python -m benchmarks.measure.engines [--record]
    python -m benchmarks.measure.engines --device cuda --models vit-tiny,resnet18 --clients 10
"""

import argparse
import json
import math
import os
import statistics
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.partition import Partition
from fedadamw.engine.ranks import current_team
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.loading import build_seeded
from fedadamw.prepare.malloc import keep_freed_memory
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.training import TrainingSettings

CORES = len(os.sched_getaffinity(0))
EACH = 100  # samples per client


class Engine(NamedTuple):
    """One way to train a round's clients."""

    ranks: int = 1
    threads: int = 1
    stack: int | None = None  # None: all of a rank's clients
    precision: str = "float32"


def engines(device: str) -> dict[str, Engine]:
    """The engines to compare on this kind of device, by name."""
    if device == "cuda":
        return {
            "loop": Engine(stack=1),
            "stacked": Engine(),
            "loop, bf16": Engine(stack=1, precision="bf16"),
            "stacked, bf16": Engine(precision="bf16"),
        }
    return {
        "loop": Engine(stack=1),
        f"loop, {CORES} threads": Engine(stack=1, threads=CORES),
        "stacked": Engine(),
        f"stacked, {CORES} threads": Engine(threads=CORES),
        f"{CORES} ranks": Engine(ranks=CORES, stack=1),
        f"{CORES} ranks, stacked": Engine(ranks=CORES),
        f"{CORES} ranks, bf16": Engine(ranks=CORES, stack=1, precision="bf16"),
    }


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--models", default="vit-nano,vit-mini,swin-nano,resnet-nano")
    parser.add_argument("--clients", default="2,10", help="numbers of sampled clients S")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4, help="the first and the last are not timed")
    parser.add_argument("--one", metavar="JSON", help="measure this engine in this process")
    args = parser.parse_args()
    if args.one:
        measure(args, Engine(*json.loads(args.one)))
        return
    runs_by_job: dict[str, dict[str, Any]] = {}
    print(f"{'model':12} {'S':>3} {'engine':22} {'s a round':>10} {'of the loop':>12}")
    for model in args.models.split(","):
        for clients in args.clients.split(","):
            runs = {name: run_engine(args, engine, model, clients) for name, engine in engines(args.device).items()}
            check_losses(runs)
            for name, run in runs.items():
                run["of_loop"] = round(run["round_s"] / runs["loop"]["round_s"], 3)
                print(f"{model:12} {clients:>3} {name:22} {run['round_s']:10.3f} {run['of_loop']:12.2f}", flush=True)
            runs_by_job[f"{model}, S={clients}"] = runs
    content = {
        "commit": commit(),
        "device": device_name(torch.device(args.device)),
        "torch": torch.__version__,
        "job": {"steps": args.steps, "batch": args.batch, "rounds": args.rounds},
        "runs": runs_by_job,
    }
    records.write("engines", args.device, content, record=args.record)


def run_engine(args: argparse.Namespace, engine: Engine, model: str, clients: str) -> dict[str, Any]:
    """Run `measure` in processes of its own and return what it prints."""
    arguments = ["--one", json.dumps(engine), "--device", args.device, "--models", model, "--clients", clients]
    arguments += ["--rounds", str(args.rounds), "--steps", str(args.steps), "--batch", str(args.batch)]
    return run_again(__file__, arguments, ranks=engine.ranks, threads=engine.threads)


def measure(args: argparse.Namespace, engine: Engine) -> None:
    """Run one engine's rounds; print the median time of all but the first and last, and the losses."""
    torch.set_num_threads(engine.threads)
    device, sampled = torch.device(args.device), int(args.clients)
    if device.type == "cpu":
        keep_freed_memory()  # as a run does: else a round's time depends on what was allocated before it
    built = build_seeded(lambda: vision.build(args.models, vision.ImageShape(32, 3, 10)), 0)
    for module in built.model.modules():  # drop path draws other numbers in a loop than stacked
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    generator = np.random.default_rng(0)
    n = 50 * EACH
    labels = np.arange(n) % 10
    data = Images(generator.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8), labels, tuple(map(str, range(10))))
    model = built.model.to(device)
    task = ImageTask(data, data.select(np.arange(50)), device=device, crop_padding=4, flip=True)
    clients = Partition(np.arange(n), np.arange(EACH, n + 1, EACH))
    training = TrainingSettings(
        rounds=args.rounds,
        clients_per_round=sampled,
        steps=args.steps,
        batch_size=args.batch,
        evaluate_every=args.rounds,
        precision=engine.precision,
    )
    ranks = current_team(device)
    simulation = Simulation.in_process(
        model,
        FedAdamW(blocks=Blocks.of(model)),
        task,
        clients,
        training,
        stack=engine.stack or sampled,
        step="compiled" if device.type == "cuda" else "fused",
        ranks=ranks,
    )
    rounds = list(simulation.rounds())
    if ranks.rank == 0:
        times = [round_.wall_s for round_ in rounds[1:-1]]  # the last one evaluates
        print(json.dumps({"round_s": statistics.median(times), "losses": [r.train_loss for r in rounds]}))


def check_losses(runs: dict[str, dict[str, Any]]) -> None:
    """Stop if the losses of the engines do not agree."""
    for name, run in runs.items():
        tolerance = 0.05 if "bf16" in name else 1e-3
        for ours, theirs in zip(run["losses"], runs["loop"]["losses"], strict=True):
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise SystemExit(f"{name} has losses {run['losses']}, the loop {runs['loop']['losses']}")


if __name__ == "__main__":
    main()
