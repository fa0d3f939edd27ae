"""Flower apps of the tests: many small runs in one, and nodes that lie, sleep or die."""

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
from fedadamw.flower.server_app import nodes_of
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.folder import RunFolder

app = ServerApp()


class Locked:
    """A grid that one thread uses at a time."""

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
        jobs[name] = prepared.simulation(nodes_of(experiment, prepared, grid, RunFolder(out / name)))

    def run(name):
        records = [record.federation for record in jobs[name].rounds()]
        checkpoint.write(out / name / "state.safetensors", "checkpoint", jobs[name].tensors(), {"records": records})

    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(run, jobs))
'''

LIARS = """
import json
import time

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
    if asked["round"] == config.get("slow-in-round"):
        time.sleep(60)
    reply = answer_message(message, context)
    if config.get("liar"):
        config = yaml.safe_load(asked["settings"])["data"]["config"] or ""  # which the digits do not use
        told(config.removeprefix("lie-"), reply.content[ARRAYS], reply.content[NUMBERS])
    return reply


def told(lie, arrays, numbers):
    delta = arrays["up.delta"].numpy().copy()
    if lie == "nan":
        delta[7] = np.nan
        arrays["up.delta"] = Array(delta)
    elif lie == "shape":
        arrays["up.delta"] = Array(delta[:-1])
    elif lie == "dtype":
        arrays["up.delta"] = Array(delta.astype(np.float64))
    elif lie == "extra":
        arrays["up.more"] = Array(delta)
    elif lie == "missing":
        del arrays["up.k"]
    elif lie == "negative":
        arrays["up.v"] = Array(-arrays["up.v"].numpy() - 1)
    elif lie == "steps":
        arrays["up.k"] = Array(np.full(1, 1000, np.float32))
    elif lie == "weight":
        numbers["num-examples"] = 10**12
    elif lie == "long":
        arrays["up.delta"] = Array(1000 * delta)
    elif lie == "garbage":
        arrays["up.delta"] = Array(dtype="float32", shape=delta.shape, stype="numpy.ndarray", data=b"garbage" * 1000)
    elif lie == "error":
        raise ValueError("this node fails")
"""


def many(folder: Path, settings: list[str], jobs: dict[str, list[str]], *, client: str | None = None) -> Path:
    """An app that runs all `jobs`, settings by name, at once; the app's folder."""
    own(folder, settings, client=client)
    place = next(folder.glob("*/server_app.py"))
    place.write_text(SERVER)
    place.with_name("jobs.json").write_text(json.dumps(jobs))
    return folder


def own(folder: Path, settings: list[str], *, client: str | None = None) -> Path:
    """An app as users get it, with another client app where one is given."""
    new_app.write_app(folder, load("digits", settings))
    if client is not None:
        next(folder.glob("*/client_app.py")).write_text(client)
    return folder
