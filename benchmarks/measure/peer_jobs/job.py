"""The job that every framework runs: the same data, model, clients of each round and batches.

Clients and batches are drawn as fedadamw draws them with seed 0, so ours needs no adapter. 100 clients x 500 random
images of 3 x 32 x 32, 10 sampled per round, 10 local steps of AdamW on batches of 50, plain mean of the models. Needs
only numpy and torch, so it runs in every framework's environment.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn

CLIENTS, EACH, SAMPLED, STEPS, BATCH = 100, 500, 10, 10, 50
LR, WEIGHT_DECAY = 1e-3, 0.01
CLASSES = 10


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (CLIENTS * EACH, 3, 32, 32), noise plus the center of their class, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (CLIENTS * EACH,), generator=generator)
    centers = torch.randn(CLASSES, 3, 32, 32, generator=generator)
    images = torch.randn(CLIENTS * EACH, 3, 32, 32, generator=generator)
    for client in range(CLIENTS):  # in parts, without a second copy of all images
        part = slice(client * EACH, (client + 1) * EACH)
        images[part].add_(centers[labels[part]], alpha=0.3)
    return images, labels


def clients_of(round_: int, sampled: int = SAMPLED) -> list[int]:
    """The sampled clients of a round."""
    drawn = np.random.default_rng(np.random.SeedSequence((0, 1, round_, 0))).choice(CLIENTS, sampled, replace=False)
    return sorted(drawn.tolist())


def batches_of(round_: int, client: int) -> np.ndarray:
    """The indices of the samples of each local step, (STEPS, BATCH)."""
    order = np.random.default_rng(np.random.SeedSequence((0, 2, round_, client))).permutation(EACH)
    return client * EACH + order[: STEPS * BATCH].reshape(STEPS, BATCH)


def model_of(name: str) -> nn.Module:
    """`cnn`, or `vit` (ViT-Tiny with patches of 4), with the same weights everywhere."""
    torch.manual_seed(0)
    return cnn() if name == "cnn" else ViT()


def cnn() -> nn.Module:
    """Two 5 x 5 convolutions and two linear layers: the CNN of the FedAvg paper."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 8 * 8, 512),
        nn.ReLU(),
        nn.Linear(512, CLASSES),
    )


class ViT(nn.Module):
    """ViT-Tiny: 12 layers of width 192 with 3 heads, from torch's modules."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 192))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, 192))
        layer = nn.TransformerEncoderLayer(192, 3, 768, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(192)
        self.head = nn.Linear(192, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, CLASSES)."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.encoder(x)[:, 0]))


class Stopwatch:
    """Measures a run of the job; created before the heavy imports so that they count."""

    def __init__(self) -> None:
        self.start = float(sys.argv[3]) if len(sys.argv) > 3 else time.time()  # when the process was started
        self.ends: list[float] = []
        self.losses: list[float] = []

    def round(self, loss: float) -> None:
        """Note the end of a round; `loss` is the mean of its clients' training losses."""
        self.ends.append(time.time())
        self.losses.append(loss)

    def report(self) -> None:
        """Print the results as one line of JSON."""
        round_s = float(np.median(np.diff(self.ends)))
        print(
            json.dumps(
                {
                    "start_s": round(self.ends[0] - self.start - round_s, 2),  # before the first round
                    "round_s": round(round_s, 3),
                    "losses": [round(loss, 4) for loss in self.losses],
                }
            )
        )


def arguments() -> tuple[str, int, int]:
    """Model, rounds and clients per round, from the command line: `plain.py cnn 5`."""
    name, rounds = sys.argv[1], int(sys.argv[2])
    return name, rounds, SAMPLED if name == "cnn" else 2
