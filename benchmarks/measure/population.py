"""Measure a million clients: time and memory to build a partition, and whether a round gets slower.

python -m benchmarks.measure.population [--record]
"""

import json
import resource
import time

import numpy as np
import torch
from torch import nn

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from fedadamw.algorithms.scaffold import Scaffold
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.partition import Partition, partition_dirichlet, partition_iid, partition_mix
from fedadamw.engine.simulate import Simulation
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.training import TrainingSettings

CLIENTS = 1_000_000
EACH = 8  # samples per client
KINDS = {
    "mix": lambda labels, g: partition_mix(labels, CLIENTS, 0.1, g),
    "dirichlet": lambda labels, g: partition_dirichlet(labels, CLIENTS, 0.1, 1, g),
    "iid": lambda labels, g: partition_iid(labels, CLIENTS, g),
}


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--one", choices=KINDS, metavar="NAME", help="build this partition in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(build_partition(args.one)))
        return
    torch.set_num_threads(1)
    partitions = {}
    for name in KINDS:
        partitions[name] = run_again(__file__, ["--one", name])
        print(
            f"{name:10} {CLIENTS:,} clients in {partitions[name]['s']} s, {partitions[name]['peak_mb']} MB", flush=True
        )
    rounds = time_rounds((100, CLIENTS))
    for clients, seconds in rounds.items():
        print(f"a round of 10 among {clients:>9,} clients: {1e3 * seconds:.1f} ms")
    content = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "clients": CLIENTS,
        "samples": CLIENTS * EACH,
        "partitions": partitions,
        "round_s": {str(n): round(s, 5) for n, s in rounds.items()},
    }
    records.write("population", args.device, content, record=args.record)


def build_partition(kind: str) -> dict[str, float]:
    """Build one partition; return its seconds and peak memory."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, CLIENTS * EACH)
    start = time.perf_counter()
    partition = KINDS[kind](labels, generator)
    seconds = time.perf_counter() - start
    assert len(partition) == CLIENTS
    return {"s": round(seconds, 1), "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)}


def time_rounds(populations: tuple[int, ...]) -> dict[int, float]:
    """Seconds of a round with the same work, the fastest of many in turns, by number of registered clients."""
    pixels = np.random.default_rng(0).integers(0, 256, (800, 3, 8, 8), dtype=np.uint8)
    data = Images(pixels, np.arange(800) % 10, tuple(map(str, range(10))))
    task = ImageTask(data, data, device=torch.device("cpu"))
    training = TrainingSettings(rounds=10_000, clients_per_round=10, steps=5, batch_size=8, evaluate_every=10_000)
    simulations = {}
    for n in populations:
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, 10))
        samples = np.tile(np.arange(800), -(-n * EACH // 800))[: n * EACH]
        clients = Partition(samples, np.arange(EACH, n * EACH + 1, EACH))
        simulations[n] = Simulation.in_process(model, Scaffold(), task, clients, training)
    best = dict.fromkeys(populations, float("inf"))
    for _ in range(200):
        for n, simulation in simulations.items():
            best[n] = min(best[n], simulation.step().wall_s)
    return best


if __name__ == "__main__":
    main()
