"""Very many clients: how long a partition takes, what it takes of memory, and whether a round feels how many there are.

python -m benchmarks.measure.population          # writes benchmarks/results/population_cpu_<yyyymm>.json
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from torch import nn

from benchmarks.common import records
from fedadamw.algorithms.scaffold import Scaffold
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.partition import (
    Partition,
    partition_dirichlet,
    partition_iid,
    partition_mix,
)
from fedadamw.engine.simulate import Simulation
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.training import TrainingSettings

CLIENTS = 1_000_000
EACH = 8  # samples a client
KINDS = {
    "mix": lambda labels, g: partition_mix(labels, CLIENTS, 0.1, g),
    "dirichlet": lambda labels, g: partition_dirichlet(labels, CLIENTS, 0.1, 1, g),
    "iid": lambda labels, g: partition_iid(labels, CLIENTS, g),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="build this one and say what it took; all by default")
    kind = parser.parse_args().kind
    if kind:
        print(json.dumps(build(kind)))
        return
    torch.set_num_threads(1)
    partitions = {}
    for name in KINDS:  # each in a process of its own, for its peak of memory
        command = [sys.executable, "-m", __spec__.name, "--kind", name]
        partitions[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"{name:10} {CLIENTS:,} clients in {partitions[name]['s']} s, {partitions[name]['peak_mb']} MB", flush=True
        )
    rounds = round_times((100, CLIENTS))
    for clients, seconds in rounds.items():
        print(f"a round of 10 among {clients:>9,} clients: {1e3 * seconds:.1f} ms")
    record = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "clients": CLIENTS,
        "samples": CLIENTS * EACH,
        "partitions": partitions,
        "round_s": {str(n): round(s, 5) for n, s in rounds.items()},
    }
    records.write("population", "cpu", record)


def build(kind: str) -> dict[str, float]:
    """Seconds and peak memory of one partition."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, CLIENTS * EACH)
    start = time.perf_counter()
    made = KINDS[kind](labels, generator)
    seconds = time.perf_counter() - start
    assert len(made) == CLIENTS
    return {"s": round(seconds, 1), "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def round_times(populations: tuple[int, ...]) -> dict[int, float]:
    """Seconds a round of the same work, the fastest of many in turns, with so many clients registered."""
    pixels = np.random.default_rng(0).integers(0, 256, (800, 3, 8, 8), dtype=np.uint8)
    data = Images(pixels, np.arange(800) % 10, tuple(map(str, range(10))))
    task = ImageTask(data, data, device=torch.device("cpu"))
    training = TrainingSettings(rounds=10_000, clients_per_round=10, steps=5, batch_size=8, evaluate_every=10_000)
    simulations = {}
    for n in populations:
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 10))
        samples = np.tile(np.arange(800), -(-n * EACH // 800))[: n * EACH]
        clients = Partition(samples, np.arange(EACH, n * EACH + 1, EACH))
        simulations[n] = Simulation(model, Scaffold(), task, clients, training)
    best = dict.fromkeys(populations, float("inf"))
    for _ in range(200):
        for n, simulation in simulations.items():
            best[n] = min(best[n], simulation.step().wall_s)
    return best


if __name__ == "__main__":
    main()
