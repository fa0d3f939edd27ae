"""FedAdamW in a LightningModule: a client's round is one `trainer.fit`.

python examples/lightning_module.py
"""

import logging

import digits
import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fedadamw


class Client(pl.LightningModule):
    """A client for one round: `fit` trains `network` from the broadcast `down`, and stores the upload in `up`."""

    def __init__(self, network: nn.Module, blocks: fedadamw.Blocks, down: fedadamw.Broadcast) -> None:
        super().__init__()
        self.network, self.blocks, self.down = network, blocks, down

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, labels = batch
        return nn.functional.cross_entropy(self.network(pixels), labels)

    def configure_optimizers(self) -> fedadamw.FedAdamW:
        return fedadamw.FedAdamW(self.network.named_parameters(), lr=3e-3, blocks=self.blocks)

    def on_train_start(self) -> None:
        if self.global_step == 0:  # else a checkpoint from the middle of the round was loaded
            self.optimizers().start_round(self.down)

    def on_train_end(self) -> None:
        self.up = self.optimizers().finish_round()


def fit(client: Client, data: TensorDataset, **settings: object) -> fedadamw.Upload:
    """Train one client for a round and return its upload; `settings` are for Lightning's Trainer."""
    settings = {"barebones": True, "gradient_clip_val": 1.0} | settings
    pl.Trainer(**settings).fit(client, DataLoader(data, batch_size=32, shuffle=True))
    return client.up


def main() -> None:
    """Run fifteen rounds of five clients."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    clients, held_out = digits.load()
    network = digits.network()
    server = fedadamw.Server(network, blocks=(blocks := fedadamw.Blocks.of(network)))
    digits.show(0, network, held_out)
    for round_ in range(1, 16):
        uploads = [fit(Client(network, blocks, server.broadcast()), data, max_epochs=1) for data in clients]
        server.update(uploads, weights=[len(data) for data in clients])
        server.load_into(network)
        digits.show(round_, network, held_out)


if __name__ == "__main__":
    main()
