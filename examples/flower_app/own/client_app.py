"""A node: your own model and data loader, and FedAdamW as the optimizer."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Generator, nn
from torch.utils.data import DataLoader

import fedadamw
from fedadamw.flower.records import pack, unpack_broadcast
from own.task import NODES, data, network

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch from the server's broadcast."""
    part, round_ = int(context.node_config["partition-id"]), int(message.content["about"]["round"])
    if not 0 <= part < NODES:
        raise ValueError(f"partition-id {part}: there are {NODES} parts")
    own, model = data(part), network()
    blocks = fedadamw.Blocks.of(model)
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=3e-3, blocks=blocks)
    opt.start_round(unpack_broadcast(message.content["down"], blocks))
    for pixels, labels in DataLoader(own, batch_size=16, shuffle=True, generator=Generator().manual_seed(round_)):
        nn.functional.cross_entropy(model(pixels), labels).backward()
        opt.step()
        opt.zero_grad()
    up = pack(opt.finish_round())
    return Message(RecordDict({"up": up, "numbers": MetricRecord({"num-examples": len(own)})}), reply_to=message)
