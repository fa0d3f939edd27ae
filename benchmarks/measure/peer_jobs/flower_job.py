"""The job in Flower: its simulation (Ray), its FedAvg and array records of the model's state dict."""

import os
import sys
import time

from job import CLIENTS, LR, WEIGHT_DECAY, Stopwatch, arguments, batches_of, clients_of, data, model_of

watch = Stopwatch()
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

name, rounds, sampled = arguments()
client_app, server_app = ClientApp(), ServerApp()
cache: dict[str, object] = {}  # in each actor: loaded once, not once per client


@client_app.train()
def train(message: Message, context) -> Message:
    """Train the client that the message names."""
    if not cache:
        torch.set_num_threads(1)  # one actor per core
        cache["data"], cache["model"] = data(), model_of(name)
    (images, labels), model = cache["data"], cache["model"]
    config = message.content["config"]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    opt = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    losses = []
    for batch in torch.from_numpy(batches_of(config["round"], config["client"])):
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"loss": sum(losses) / len(losses), "num-examples": 500}),
        }
    )
    return Message(content=content, reply_to=message)


class JobFedAvg(FedAvg):
    """FedAvg over the job's clients of each round; notes the end of each round."""

    def configure_train(self, server_round, arrays, config, grid):
        while len(nodes := list(grid.get_node_ids())) < CLIENTS:
            time.sleep(0.05)
        chosen = clients_of(server_round - 1, sampled)
        for node, client in zip(nodes, chosen, strict=False):
            instruction = ConfigRecord({"round": server_round - 1, "client": client})
            yield Message(RecordDict({"arrays": arrays, "config": instruction}), node, MessageType.TRAIN)

    def configure_evaluate(self, server_round, arrays, config, grid):
        return []

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        watch.round(float(metrics["loss"]))
        return arrays, metrics


@server_app.main()
def main(grid, context) -> None:
    """Run all rounds."""
    arrays = ArrayRecord(model_of(name).state_dict())
    JobFedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=rounds)


resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
run_simulation(server_app, client_app, num_supernodes=CLIENTS, backend_config=resources)
watch.report()
sys.stdout.flush()
