"""Train vit-tiny, swin-tiny and resnet18 on CIFAR-10 at Dirichlet 0.1 for a few rounds of FedAdamW: the loss must fall.

python -m benchmarks.measure.cifar10_models --data ../shared/data/cifar10 [--record]
"""

import platform
from dataclasses import asdict

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

SETTINGS = (
    "training.rounds=6 training.schedule=constant training.clients_per_round=20 training.steps=1 training.batch_size=8"
    " training.evaluate_every=1 data.max_test=200 partition.concentration=0.1"
)
LEARNING_RATES = {"resnet18": 5e-5, "swin-tiny": 1e-4, "vit-tiny": 3e-4}


def run(model: str, data: str, threads: int) -> dict:
    """Train one model; return the held-out loss before the first round and the record of each round."""
    chosen = [
        f"model.name={model}",
        f"training.lr={LEARNING_RATES[model]}",
        f"data.source={data}",
        f"threads={threads}",
        "device=cpu",
    ]
    simulation = prepare(load("cifar10-small", [*SETTINGS.split(), *chosen])).simulation()
    start = simulation.evaluate()
    print(f"{model:<12} d={simulation.workspace.layout.d:,}  start: test loss {start.loss:.4f}", flush=True)
    rounds = []
    for record in simulation.rounds():
        losses = f"training loss {record.train_loss:.4f}  test loss {record.test_loss:.4f}"
        print(f"{model:<12} round {record.round}: {losses}  {record.wall_s:.0f} s", flush=True)
        rounds.append(asdict(record))
    return {
        "model": model,
        "lr": LEARNING_RATES[model],
        "start": {"test_loss": start.loss, "test_metrics": start.metrics},
        "records": rounds,
    }


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--data", default="uoft-cs/cifar10")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    revision = commit()  # of the code that runs; the checkout can change until the end
    runs = [run(model, args.data, args.threads) for model in LEARNING_RATES]
    device = f"cpu, {platform.machine()}, {args.threads} threads"
    content = {"commit": revision, "device": device, "torch": torch.__version__, "settings": SETTINGS, "runs": runs}
    records.write("cifar10-models", args.device, content, record=args.record)


if __name__ == "__main__":
    main()
