"""Flower apps for the tests: many small runs in one app, and nodes that lie or sleep."""

import json
from pathlib import Path

from fedadamw.flower import new_app
from fedadamw.settings.load import load

SERVER = '''
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import RLock

from flwr.serverapp import ServerApp

from fedadamw import checkpoint
from fedadamw.settings.load import load
from fedadamw.flower.server_app import connect_nodes
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.folder import RunFolder

app = ServerApp()


class Locked:
    """A grid that only one thread uses at a time."""

    def __init__(self, grid):
        self.grid, self.lock = grid, RLock()

    def __getattr__(self, name):
        def call(*arguments):
            with self.lock:
                return getattr(self.grid, name)(*arguments)

        return call


@app.main()
def main(grid, context):
    out, grid = Path(str(context.run_config["out"])), Locked(grid)
    jobs = {}
    for name, settings in json.loads((Path(__file__).parent / "jobs.json").read_text()).items():
        experiment = load(str(Path(__file__).with_name("experiment.yaml")), settings)
        prepared = prepare(experiment, remote=True)
        jobs[name] = prepared.simulation(connect_nodes(experiment, prepared, grid, RunFolder(out / name)))

    def run(name):
        records = [record.federation for record in jobs[name].rounds()]
        checkpoint.write(out / name / "state.safetensors", "checkpoint", jobs[name].tensors(), {"records": records})

    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(run, jobs))
'''

LIARS = """
import json
import time
from pathlib import Path

import numpy as np
import yaml
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedadamw.flower.client_app import answer_message
from fedadamw.flower.protocol import ARRAYS, REQUEST, NUMBERS

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    return answer_message(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    config, asked = context.node_config, message.content.config_records[REQUEST]
    time.sleep(config.get("slow-s", 0))
    if asked["round"] == config.get("slow-in-round") and wanted(asked) != "slow-scores":
        time.sleep(60)
    reply = answer_message(message, context)
    if config.get("liar"):
        lie(wanted(asked).removeprefix("lie-"), reply.content[ARRAYS], reply.content[NUMBERS])
    return reply


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    config, asked = context.node_config, message.content.config_records[REQUEST]
    first = Path(config["state-dir"]) / "evaluating"
    if wanted(asked) == "slow-scores" and asked["round"] == 2 and not first.exists():
        first.touch()
        time.sleep(20)
    reply = answer_message(message, context)
    answers = ARRAYS in reply.content  # not if its node keeps other runs' models only, and needs the state again
    if config.get("liar") and wanted(asked).startswith("sums-") and answers:
        sums = reply.content[ARRAYS]["sums"].numpy().copy()
        place, value = SUMS[wanted(asked)]
        sums[place] = value
        reply.content[ARRAYS]["sums"] = Array(sums)
    return reply


SUMS = {"sums-more": (2, 1000.0)}


def wanted(asked):
    return yaml.safe_load(asked["settings"])["data"]["config"] or ""  # the digits do not use it


def lie(kind, arrays, numbers):
    delta = arrays["up.delta"].numpy().copy()
    if kind == "nan":
        delta[7] = np.nan
        arrays["up.delta"] = Array(delta)
    elif kind == "missing":
        del arrays["up.k"]
    elif kind == "weight":
        numbers["num-examples"] = 10**12
    elif kind == "garbage":
        arrays["up.delta"] = Array(dtype="float32", shape=delta.shape, stype="numpy.ndarray", data=b"garbage" * 1000)
    elif kind == "error":
        raise ValueError("this node fails")
"""


def write_many(folder: Path, settings: list[str], jobs: dict[str, list[str]], *, client: str | None = None) -> Path:
    """Write an app that runs all `jobs` (name -> settings) at once; return its folder."""
    write_app(folder, settings, client=client)
    place = next(folder.glob("*/server_app.py"))
    place.write_text(SERVER)
    place.with_name("jobs.json").write_text(json.dumps(jobs))
    return folder


def write_app(folder: Path, settings: list[str], *, client: str | None = None) -> Path:
    """Write an app as `fedadamw flower new` does, with `client` as its ClientApp if given; return its folder."""
    new_app.write_app(folder, load("digits", settings))
    if client is not None:
        next(folder.glob("*/client_app.py")).write_text(client)
    return folder
