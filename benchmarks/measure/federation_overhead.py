"""Measure what fedadamw adds to a round of Flower, against Flower's FedAvg with an empty ClientApp and equal payload.

python -m benchmarks.measure.federation_overhead [--nodes 2] [--rounds 8] [--turns 3] [--record]

Both run in turns on one test bed (TLS, node keys, a process each) and send the same bytes down and up in each round. A
round lasts from the end of the previous round to its own end; ours includes the guard, the spool, the mean, and
metrics.jsonl and the checkpoint on disk. Ours trains one step on one image. Flower's strategy polls for answers every
3 s, ours more often; with `--look 3` ours polls as rarely, so that only the work is compared.
"""

import itertools
import json
import os
import platform
import tempfile
from pathlib import Path
from statistics import median

import flwr
import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.flower import new_app
from fedadamw.flower.local.testbed import LocalFederation
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

CLIENT = """
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"]
    up = ArrayRecord({name: array for name, array in arrays.items() if name != "down"})
    numbers = MetricRecord({"num-examples": 1, "loss": 0.0})
    return Message(RecordDict({"arrays": up, "metrics": numbers}), reply_to=message)
"""

SERVER = """
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    def aggregate_train(self, server_round, replies):
        _, metrics = super().aggregate_train(server_round, replies)
        with open(self.out, "a") as file:
            file.write(f"{time.time()}\\n")
        # send the same arrays as in the first round
        return self.down, metrics


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=config["nodes"])
    strategy.out = config["out"]
    noise = np.random.default_rng(0)
    sizes = {"up": int(config["up"]), "down": int(config["down"]) - int(config["up"])}
    arrays = {name: Array(noise.standard_normal(size // 4).astype(np.float32)) for name, size in sizes.items()}
    strategy.down = ArrayRecord(arrays)
    strategy.start(grid=grid, initial_arrays=strategy.down, num_rounds=int(config["rounds"]))
"""


TIMED = """

import time

from fedadamw.flower.server import collect
from fedadamw.flower.server.rounds import Rounds

sample = Rounds.sample


def sample_and_note_the_time(self, round_):
    with open(OUT, "a") as file:  # everything of the previous round is on disk now
        file.write(f"{time.time()}\\n")
    return sample(self, round_)


Rounds.sample = sample_and_note_the_time
"""


def time_flower(folder: Path, bed: LocalFederation, nodes: int, rounds: int, up: int, down: int) -> list[float]:
    """Run Flower's FedAvg; return the seconds of its rounds except the first."""
    new_app.write_app(folder, load("digits"))
    package = next(folder.glob("*/client_app.py")).parent
    (package / "client_app.py").write_text(CLIENT)
    (package / "server_app.py").write_text(SERVER)
    toml = (folder / "pyproject.toml").read_text()
    (folder / "pyproject.toml").write_text(toml + "nodes = 0\nrounds = 0\nup = 0\ndown = 0\n")
    out = folder / "times"
    config = {"out": str(out), "nodes": nodes, "rounds": rounds, "up": up, "down": down}
    assert bed.wait_for_end(bed.submit(folder, config), 1200) == "finished:completed"
    times = [float(line) for line in out.read_text().split()]
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


def time_fedadamw(folder: Path, bed: LocalFederation, settings: list[str], look: float | None) -> list[float]:
    """Run ours; return the seconds of its rounds except the first and the last, which writes report and picture."""
    new_app.write_app(folder, load("digits", settings))
    app = next(folder.glob("*/server_app.py"))
    app.write_text(app.read_text() + TIMED.replace("OUT", repr(str(folder / "times"))))
    if look is not None:
        app.write_text(app.read_text() + f"\ncollect.POLL_S = ({look}, {look})\n")
    assert bed.wait_for_end(bed.submit(folder, {"out": str(folder / "run")}), 1200) == "finished:completed"
    times = [float(line) for line in (folder / "times").read_text().split()][1:]
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="vit-micro")
    parser.add_argument("--look", type=float, help="seconds between two polls for answers; default: ours")
    args = parser.parse_args()
    settings = [
        f"partition.clients={args.nodes}",
        f"training={{steps: 1, batch_size: 1, rounds: {args.rounds}, clients_per_round: {args.nodes}}}",
        f"training.evaluate_every={args.rounds}",
        "federation.reuse=false",
        f"model={args.model}",
        "threads=1",
        "device=cpu",
    ]
    record = next(iter(prepare(load("digits", [*settings, "training.rounds=1"])).simulation().rounds()))
    up, down = record.up_bytes // args.nodes, record.down_bytes // args.nodes
    seconds: dict[str, list[float]] = {"flower": [], "fedadamw": []}
    with tempfile.TemporaryDirectory() as folder, LocalFederation(Path(folder) / "bed", args.nodes) as bed:
        bed.start_superlink()
        for node in range(args.nodes):
            bed.register(node)
            bed.start_node(node, {"threads": 1})
        for turn in range(args.turns):
            place = Path(folder)
            seconds["flower"] += time_flower(place / f"flower-{turn}", bed, args.nodes, args.rounds, up, down)
            seconds["fedadamw"] += time_fedadamw(place / f"fedadamw-{turn}", bed, settings, args.look)
            print({name: median(times) for name, times in seconds.items()}, flush=True)
    medians = {name: round(median(times), 3) for name, times in seconds.items()}
    content = {
        "device": f"cpu: {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "flwr": flwr.__version__},
        "commit": commit(),
        "nodes": args.nodes,
        "model": args.model,
        "look_s": args.look,
        "payload_bytes": {"up": up, "down": down},
        "median_s": medians,
        "ratio": round(medians["fedadamw"] / medians["flower"], 3),
        "seconds": seconds,
    }
    print(json.dumps({k: v for k, v in content.items() if k != "seconds"}, indent=1))
    kind = "federation-overhead" if args.look is None else "federation-overhead-same-looks"
    records.write(f"{kind}-{args.model}", args.device, content, record=args.record)


if __name__ == "__main__":
    main()
