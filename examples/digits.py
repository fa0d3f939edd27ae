"""Handwritten digits for the examples: five clients that know two digits each, and images that nobody trains on."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def load() -> tuple[list[TensorDataset], TensorDataset]:
    """The clients' images, and every fifth image held out; of scikit-learn's 1,797 images of 8x8 pixels."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16  # (images, 64)
    labels = torch.tensor(data.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    clients = [~held_out & (labels // 2 == i) for i in range(5)]
    return [TensorDataset(pixels[own], labels[own]) for own in clients], TensorDataset(
        pixels[held_out], labels[held_out]
    )


def network(width: int = 64) -> nn.Module:
    """A small perceptron; it and the batches drawn after it are the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 10))


@torch.no_grad()
def show(round_: int, model: nn.Module, held_out: TensorDataset) -> None:
    """Print what `model` gets right of the held-out images."""
    device = next(model.parameters()).device
    pixels, labels = (t.to(device) for t in held_out.tensors)
    logits: Tensor = model(pixels)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    print(f"round {round_}: held-out loss {loss:.3f}, accuracy {accuracy:.3f}")
