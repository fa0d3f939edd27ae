"""The engines beside each other: seconds a round of the loop, stacked clients and ranks, by model and clients a round.

All engines train the same clients on the same batches, so the losses of a model must agree before a time is believed.

    python -m benchmarks.measure.engines   # writes benchmarks/results/engines_<device>_<yyyymm>.json
    python -m benchmarks.measure.engines --device cuda --models vit-tiny,resnet18 --clients 10
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import records
from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.partition import Partition
from fedadamw.engine.ranks import team
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.loading import initial
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.training import TrainingSettings

CORES = len(os.sched_getaffinity(0))
EACH = 100  # samples a client


class Engine(NamedTuple):
    """One way to train the clients of a round."""

    ranks: int = 1
    threads: int = 1
    stack: int | None = None  # None: all of a rank's clients
    precision: str = "float32"


def engines(device: str) -> dict[str, Engine]:
    """What is compared on this kind of device."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", default="vit-nano,vit-mini,swin-nano,resnet-nano")
    parser.add_argument("--clients", default="2,10", help="numbers of clients a round, S")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=4, help="the first is not counted")
    parser.add_argument("--one", help="one engine as JSON, in this process: for torchrun")
    given = parser.parse_args()
    if given.one:
        alone(given, Engine(*json.loads(given.one)))
        return
    found: dict[str, dict[str, Any]] = {}
    print(f"{'model':12} {'S':>3} {'engine':22} {'s a round':>10} {'of the loop':>12}")
    for model in given.models.split(","):
        for clients in given.clients.split(","):
            runs = {name: started(given, engine, model, clients) for name, engine in engines(given.device).items()}
            check_losses(runs)
            for name, run in runs.items():
                run["of_loop"] = round(run["round_s"] / runs["loop"]["round_s"], 3)
                print(f"{model:12} {clients:>3} {name:22} {run['round_s']:10.3f} {run['of_loop']:12.2f}", flush=True)
            found[f"{model}, S={clients}"] = runs
    record = {
        "commit": commit(),
        "device": device_name(torch.device(given.device)),
        "torch": torch.__version__,
        "job": {"steps": given.steps, "batch": given.batch, "rounds": given.rounds},
        "runs": found,
    }
    records.write("engines", given.device, record)


def started(given: argparse.Namespace, engine: Engine, model: str, clients: str) -> dict[str, Any]:
    """What `alone` prints, in processes of its own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(engine.ranks)]
    command = [sys.executable, *(torchrun if engine.ranks > 1 else []), __file__, "--one", json.dumps(engine)]
    command += ["--device", given.device, "--models", model, "--clients", clients, "--rounds", str(given.rounds)]
    command += ["--steps", str(given.steps), "--batch", str(given.batch)]
    threads = {**os.environ, "OMP_NUM_THREADS": str(engine.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=threads, check=False)
    if done.returncode:
        raise SystemExit(f"{model}, {engine}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def alone(given: argparse.Namespace, engine: Engine) -> None:
    """One engine's rounds; prints the median time of all but the first, and the losses."""
    torch.set_num_threads(engine.threads)
    device, sampled = torch.device(given.device), int(given.clients)
    built = initial(lambda: vision.build(given.models, vision.ImageShape(32, 3, 10)), 0)
    for module in built.model.modules():  # what is dropped is drawn, and is not the same in a loop and stacked
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
        rounds=given.rounds,
        clients_per_round=sampled,
        steps=given.steps,
        batch_size=given.batch,
        evaluate_every=given.rounds,
        precision=engine.precision,
    )
    ranks = team(device)
    simulation = Simulation(
        model,
        FedAdamW(blocks=Blocks.of(model)),
        task,
        clients,
        training,
        stack=engine.stack or sampled,
        compiled=device.type == "cuda",
        ranks=ranks,
    )
    records = list(simulation.rounds())
    if ranks.rank == 0:
        times = [record.wall_s for record in records[1:-1]]  # the last one evaluates
        print(json.dumps({"round_s": statistics.median(times), "losses": [r.train_loss for r in records]}))


def check_losses(runs: dict[str, dict[str, Any]]) -> None:
    """All engines did the same work."""
    for name, run in runs.items():
        tolerance = 0.05 if "bf16" in name else 1e-3
        for ours, theirs in zip(run["losses"], runs["loop"]["losses"], strict=True):
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise SystemExit(f"{name} has losses {run['losses']}, the loop {runs['loop']['losses']}")


if __name__ == "__main__":
    main()
