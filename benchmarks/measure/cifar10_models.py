"""A few rounds of FedAdamW with vit-tiny, swin-tiny and resnet18 on CIFAR-10, Dirichlet 0.1: does the loss fall?

python -m benchmarks.measure.cifar10_models --data ../shared/data/cifar10
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from fedadamw.checkpoint import write_atomically
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

RESULTS = Path(__file__).parent.parent / "results" / "cifar10-models_cpu_202611.json"
SETTINGS = (
    "training.rounds=6 training.schedule=constant training.clients_per_round=20 training.steps=1 training.batch_size=8"
    " training.evaluate_every=1 data.max_test=200 partition.concentration=0.1"
)
LEARNING_RATES = {"resnet18": 5e-5, "swin-tiny": 1e-4, "vit-tiny": 3e-4}


def run(model: str, data: str, threads: int) -> dict:
    """The held-out loss before the first round and after each."""
    own = [
        f"model.name={model}",
        f"training.lr={LEARNING_RATES[model]}",
        f"data.source={data}",
        f"threads={threads}",
        "device=cpu",
    ]
    simulation = prepare(load("cifar10-small", [*SETTINGS.split(), *own])).simulation
    start = simulation.evaluate()
    print(f"{model:<12} d={simulation.workspace.layout.d:,}  start: test loss {start.loss:.4f}", flush=True)
    records = []
    for record in simulation.rounds():
        losses = f"training loss {record.train_loss:.4f}  test loss {record.test_loss:.4f}"
        print(f"{model:<12} round {record.round}: {losses}  {record.wall_s:.0f} s", flush=True)
        records.append(asdict(record))
    return {
        "model": model,
        "lr": LEARNING_RATES[model],
        "start": {"test_loss": start.loss, "test_metrics": start.metrics},
        "records": records,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="uoft-cs/cifar10")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    revision = commit()  # of what runs, not of what the checkout holds when it ends
    runs = [run(model, args.data, args.threads) for model in LEARNING_RATES]
    device = f"cpu, {platform.machine()}, {args.threads} threads"
    content = {"commit": revision, "device": device, "torch": torch.__version__, "settings": SETTINGS, "runs": runs}
    write_atomically(RESULTS, json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
