"""Handwritten digits for the examples: five clients with two digits each, and held-out images."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def load() -> tuple[list[TensorDataset], TensorDataset]:
    """Load scikit-learn's 1,797 images of 8x8 pixels: the clients' parts, and every fifth image held out."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16  # (images, 64)
    labels = torch.tensor(data.target)
    held_out = torch.arange(len(labels)) % 5 == 0
    clients = [~held_out & (labels // 2 == i) for i in range(5)]
    return [TensorDataset(pixels[mask], labels[mask]) for mask in clients], TensorDataset(
        pixels[held_out], labels[held_out]
    )


def network(width: int = 64) -> nn.Module:
    """A small perceptron; the seed makes its weights and the batches drawn later the same in every run."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, 10))


@torch.no_grad()
def show(round_: int, model: nn.Module, held_out: TensorDataset) -> None:
    """Print the loss and accuracy of `model` on the held-out images."""
    device = next(model.parameters()).device
    pixels, labels = (t.to(device) for t in held_out.tensors)
    logits: Tensor = model(pixels)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    accuracy = (logits.argmax(-1) == labels).float().mean()
    print(f"round {round_}: held-out loss {loss:.3f}, accuracy {accuracy:.3f}")
