"""FedAdamW in the plain loop of the README, on handwritten digits; every client has only two of the ten.

python examples/plain.py
"""

import digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedadamw


def train_client(
    model: nn.Module, blocks: fedadamw.Blocks, down: fedadamw.Broadcast, data: TensorDataset
) -> fedadamw.Upload:
    """Train one epoch on a client's images."""
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=3e-3, blocks=blocks)
    opt.start_round(down)  # loads x, expands v_bar, resets m
    for pixels, labels in DataLoader(data, batch_size=32, shuffle=True):
        nn.functional.cross_entropy(model(pixels), labels).backward()
        opt.step()
        opt.zero_grad()
    return opt.finish_round()  # delta, block means of v, steps


def main(rounds: int = 15) -> None:
    """Run rounds of five clients."""
    clients, held_out = digits.load()
    model = digits.network()
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks)  # holds x, Delta_G, v_bar, t
    digits.show(0, model, held_out)
    for round_ in range(1, rounds + 1):
        uploads = [train_client(model, blocks, server.broadcast(), data) for data in clients]
        server.update(uploads, weights=[len(data) for data in clients])
        server.load_into(model)
        digits.show(round_, model, held_out)


if __name__ == "__main__":
    main()
