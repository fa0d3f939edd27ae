"""A node: it trains as any client does; SecAgg+ masks what it returns."""

from flwr.app import Array, ArrayRecord, Context
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

from secure.fixed_point import FIELDS, encode


class Node(NumPyClient):
    """Sends one upload a round, with weight 1 and no other number: those are not masked."""

    def __init__(self, part: int) -> None:
        self.part = part

    def fit(self, parameters, config):
        """Answer with the digits of an upload, for SecAgg+ to mask."""
        from secure.task import train  # here, since only one of a round's four messages needs torch

        down = ArrayRecord(dict(zip(str(config["names"]).split(), map(Array, parameters), strict=True)))
        up = train(self.part, down, int(config["round"]))
        return encode({name: up[name].numpy() for name in FIELDS}), 1, {}


def make_node(context: Context):
    """Build the client of a message."""
    return Node(int(context.node_config["partition-id"])).to_client()


app = ClientApp(make_node, mods=[secaggplus_mod])
