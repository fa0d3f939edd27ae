"""The model, the data, and a node's round: handwritten digits, of which every node holds its part."""

import torch
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedadamw
from fedadamw.flower.records import pack, unpack_broadcast

NODES = 4  # each holds a part, and the server a last one to score the model on
LR = 3e-3


def network() -> nn.Module:
    """A small network; the same first weights wherever it is built."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def data(part: int) -> TensorDataset:
    """Part 0 .. NODES of the digits, NODES being the server's."""
    pixels, labels = (torch.from_numpy(found)[part :: NODES + 1] for found in load_digits(return_X_y=True))
    return TensorDataset(pixels.float() / 16, labels)


def train(part: int, down: ArrayRecord, seed: int) -> ArrayRecord:
    """One epoch of a node: from the server's broadcast to its upload, both packed."""
    if not 0 <= part < NODES:
        raise ValueError(f"partition-id {part}: there are {NODES} parts")
    model = network()
    blocks = fedadamw.Blocks.of(model)
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=LR, blocks=blocks)
    opt.start_round(unpack_broadcast(down, blocks))
    batches = DataLoader(data(part), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(seed))
    for pixels, labels in batches:
        nn.functional.cross_entropy(model(pixels), labels).backward()
        opt.step()
        opt.zero_grad()
    return pack(opt.finish_round())


def accuracy(model: nn.Module) -> float:
    """On the server's part."""
    pixels, labels = data(NODES).tensors
    return float((model(pixels).argmax(1) == labels).float().mean())
