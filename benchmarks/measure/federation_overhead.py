"""What fedadamw adds to a round of Flower: against Flower's FedAvg with an empty ClientApp and the same payload.

python -m benchmarks.measure.federation_overhead [--nodes 2] [--rounds 8] [--turns 3]

Both run in turns on one test bed (TLS, node keys, a process each), and send the same bytes down and up in each round. A
round lasts from the end of the one before to its own: ours with the guard, the spool, the mean, metrics.jsonl and the
checkpoint on disk. Ours trains one step of one image. Flower's strategy looks for answers every 3 s, ours more often;
`--look 3` lets ours look as seldom, so that only the work is compared.
"""

import argparse
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
from fedadamw.flower import new_app
from fedadamw.flower.local.testbed import Testbed
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
        found = super().aggregate_train(server_round, replies)
        with open(self.out, "a") as file:
            file.write(f"{time.time()}\\n")
        # the same arrays go down again as in the first round
        return self.down, found[1]


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


def timed(self, round_):
    with open(OUT, "a") as file:  # all of the round before is written by now
        file.write(f"{time.time()}\\n")
    return sample(self, round_)


Rounds.sample = timed
"""


def stock(folder: Path, bed: Testbed, nodes: int, rounds: int, up: int, down: int) -> list[float]:
    """Seconds of Flower's rounds but the first."""
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


def ours(folder: Path, bed: Testbed, settings: list[str], look: float | None) -> list[float]:
    """Seconds of our rounds but the first and the last, which ends with report and picture."""
    new_app.write_app(folder, load("digits", settings))
    place = next(folder.glob("*/server_app.py"))
    place.write_text(place.read_text() + TIMED.replace("OUT", repr(str(folder / "times"))))
    if look is not None:
        place.write_text(place.read_text() + f"\ncollect.POLL_S = ({look}, {look})\n")
    assert bed.wait_for_end(bed.submit(folder, {"out": str(folder / "run")}), 1200) == "finished:completed"
    times = [float(line) for line in (folder / "times").read_text().split()][1:]
    return [round(b - a, 3) for a, b in itertools.pairwise(times)]


def main() -> None:
    """Turns of both, and the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="vit-micro")
    parser.add_argument("--look", type=float, help="seconds between looks for answers; our own where not given")
    options = parser.parse_args()
    settings = [
        f"partition.clients={options.nodes}",
        f"training={{steps: 1, batch_size: 1, rounds: {options.rounds}, clients_per_round: {options.nodes}}}",
        f"training.evaluate_every={options.rounds}",
        "federation.reuse=false",
        f"model={options.model}",
        "threads=1",
        "device=cpu",
    ]
    record = next(iter(prepare(load("digits", [*settings, "training.rounds=1"])).simulation.rounds()))
    up, down = record.up_bytes // options.nodes, record.down_bytes // options.nodes
    seconds: dict[str, list[float]] = {"flower": [], "fedadamw": []}
    with tempfile.TemporaryDirectory() as folder, Testbed(Path(folder) / "bed", options.nodes) as bed:
        bed.start_superlink()
        for node in range(options.nodes):
            bed.register(node)
            bed.start_node(node, {"threads": 1})
        for turn in range(options.turns):
            place = Path(folder)
            seconds["flower"] += stock(place / f"stock-{turn}", bed, options.nodes, options.rounds, up, down)
            seconds["fedadamw"] += ours(place / f"ours-{turn}", bed, settings, options.look)
            print({name: median(found) for name, found in seconds.items()}, flush=True)
    medians = {name: round(median(found), 3) for name, found in seconds.items()}
    record = {
        "device": f"cpu: {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "flwr": flwr.__version__},
        "commit": commit(),
        "nodes": options.nodes,
        "model": options.model,
        "look_s": options.look,
        "payload_bytes": {"up": up, "down": down},
        "median_s": medians,
        "ratio": round(medians["fedadamw"] / medians["flower"], 3),
        "seconds": seconds,
    }
    print(json.dumps({k: v for k, v in record.items() if k != "seconds"}, indent=1))
    kind = "federation-overhead" if options.look is None else "federation-overhead-same-looks"
    records.write(f"{kind}-{options.model}", "cpu", record)


if __name__ == "__main__":
    main()
