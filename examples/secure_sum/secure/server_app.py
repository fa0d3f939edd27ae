"""The server: Flower's SecAgg+ gives it the mean of the uploads and none of them; fedadamw.Server steps by it."""

import time

import numpy as np
from flwr.app import Array, Context
from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import Strategy
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp

import fedadamw
from fedadamw.flower.records import pack, unpack_upload
from secure.fixed_point import STEPS, decode
from secure.task import LR, NODES, accuracy, network

LEAST = 3  # nodes in a sum, and nodes that together could unmask an upload: of two, each would know the other's
MOST = 10_000  # local steps in a round
app = ServerApp()


class Sums(Strategy):
    """A round of all nodes online; `server` holds x, Delta_G, v_bar, t."""

    def __init__(self) -> None:
        self.model = network()
        self.server = fedadamw.Server(self.model)
        self.nodes = 0  # in this round's sum

    def configure_fit(self, server_round, parameters, client_manager):
        """Send the broadcast to all nodes; the first round waits for them."""
        self.nodes = 0
        while server_round == 1 and client_manager.num_available() < NODES:
            time.sleep(1)
        nodes = list(client_manager.all().values())
        record = pack(self.server.broadcast())
        down = ndarrays_to_parameters([array.numpy() for array in record.values()])
        asked = FitIns(down, {"round": server_round, "names": " ".join(record)})
        return [(node, asked) for node in nodes] if len(nodes) >= LEAST else []

    def aggregate_fit(self, server_round, results, failures):
        """Step by the mean upload, which SecAgg+ has put in the place of every node's."""
        self.nodes = len(results)
        mean = decode(parameters_to_ndarrays(results[0][1].parameters), self.nodes)
        blocks = self.server.blocks
        fields = {**mean, "m": np.zeros(0), "lr": np.full(len(blocks.layout.names), LR)}
        record = {name: Array(numbers.astype(np.float32)) for name, numbers in fields.items()}
        about = pack(self.server.broadcast())["about"]
        self.server.update([unpack_upload({**record, "about": about}, blocks, steps=MOST)])
        return None, {}

    def evaluate(self, server_round, parameters):
        """Say what the round gave: Flower leaves out a round without a sum and does not fail."""
        if server_round > 0:
            self.server.load_into(self.model)
            came = f"sum of {self.nodes} nodes" if self.nodes else "NO SUM, the model stays (see the log)"
            print(f"round {server_round}: {came}, accuracy {accuracy(self.model):.3f}", flush=True)

    def initialize_parameters(self, client_manager):
        """Keep Flower from asking a node for them; the broadcast has the model."""
        return ndarrays_to_parameters([])

    def configure_evaluate(self, server_round, parameters, client_manager):
        """Nodes are not evaluated: their numbers would not be masked."""
        return []

    def aggregate_evaluate(self, server_round, results, failures):
        """Return nothing."""
        return None, {}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, each in SecAgg+'s four steps."""
    sums, config = Sums(), context.run_config
    secure = SecAggPlusWorkflow(
        num_shares=1.0,  # every node holds a share of every other's key,
        reconstruction_threshold=LEAST,  # and so many of them open it
        max_weight=1,  # every node weighs 1
        clipping_range=1.0,
        quantization_range=2 * STEPS,
        timeout=float(config["seconds"]),
    )
    legacy = LegacyContext(context, config=ServerConfig(num_rounds=int(config["rounds"])), strategy=sums)
    DefaultWorkflow(fit_workflow=secure)(grid, legacy)
    if config["out"]:
        fedadamw.save(sums.server.broadcast(), str(config["out"]))
