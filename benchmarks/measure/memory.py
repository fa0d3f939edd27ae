"""Measure the memory of a round by engine, by sampled clients and by where client memory is kept.

Peak resident memory (on a GPU: allocated) above that of the same process before its first round, also in units of one
vector of the model: FedAdamW needs x, y, g, m, v, Delta_G, the running sum and the server's new x, no matter how many
clients train one after the other.

    python -m benchmarks.measure.memory [--device cuda] [--model vit-nano] [--record]
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from fedadamw.algorithms import registry
from fedadamw.algorithms.classes import NO_BLOCKS
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.partition import Partition
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.training import TrainingSettings

CASES = {
    "loop, S=2": ("fedadamw", 2, 1, "memory"),
    "loop, S=10": ("fedadamw", 10, 1, "memory"),
    "loop, S=50": ("fedadamw", 50, 1, "memory"),
    "stacked, S=2": ("fedadamw", 2, 2, "memory"),
    "stacked, S=10": ("fedadamw", 10, 10, "memory"),
    "SCAFFOLD, loop, S=50, c_i in memory": ("scaffold", 50, 1, "memory"),
    "SCAFFOLD, loop, S=50, c_i on disk": ("scaffold", 50, 1, "disk"),
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--model", default="vit-tiny")
    parser.add_argument("--one", choices=CASES, metavar="NAME", help="measure this case in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.model, torch.device(args.device), *CASES[args.one])))
        return
    cases = {}
    for name in CASES:
        cases[name] = run_again(__file__, ["--one", name, "--device", args.device, "--model", args.model])
        print(f"{name:38} {cases[name]['mb']:8,} MB {cases[name]['vectors']:8.1f} vectors", flush=True)
    content = {
        "commit": commit(),
        "device": device_name(torch.device(args.device)),
        "model": args.model,
        "cases": cases,
    }
    records.write("memory", args.device, content, record=args.record)


def measure(name: str, device: torch.device, algorithm: str, sampled: int, stack: int, memory: str) -> dict[str, Any]:
    """Return the peak memory of two rounds of one local step on one sample."""
    torch.set_num_threads(1)
    model = vision.build(name, vision.ImageShape(32, 3, 10)).model.to(device)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    data = Images(pixels, np.arange(100) % 10, tuple(map(str, range(10))))
    training = TrainingSettings(rounds=2, clients_per_round=sampled, steps=1, batch_size=1, evaluate_every=2)
    blocks = Blocks.of(model) if registry.needs_blocks(algorithm) else NO_BLOCKS
    made = registry.make(algorithm, registry.settings_of(algorithm), blocks)
    task = ImageTask(data, data.select(np.arange(2)), device=device)
    before = resident_mb(device, "RSS")
    clients = Partition(np.arange(100), np.arange(1, 101))
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) if memory == "disk" else None
        simulation = Simulation.in_process(model, made, task, clients, training, stack=stack, memory_folder=kept)
        for _ in simulation.rounds():
            pass
    extra = resident_mb(device, "HWM") - before
    return {"mb": round(extra), "vectors": round(extra * 1e6 / (4 * simulation.workspace.layout.d), 1)}


def resident_mb(device: torch.device, which: str) -> float:
    """This process's memory now (RSS), or at its peak (HWM), in MB."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if which == "HWM" else torch.cuda.memory_allocated)(device) / 1e6
    match = re.search(rf"Vm{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match.group(1)) / 1e3


if __name__ == "__main__":
    main()
