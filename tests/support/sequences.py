"""A small real problem: classes of short sequences, a transformer of 163 numbers, clients of unequal size."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fedadamw.data.sums import Hits, Pooled
from fedadamw.task import Evaluation


class SmallTransformer(nn.Module):
    """One attention block with heads, an MLP and a head: every class of the block table, in 163 numbers."""

    def __init__(self, width: int = 4, heads: int = 2, inputs: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        # no bias: that of a key changes nothing
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.mlp = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.classifier(self.norm(torch.tanh(self.mlp(y))).mean(1))


class SequenceTask(Pooled):
    """Classification of short random sequences, in float64; classes differ between clients."""

    def __init__(self, samples: int = 200, classes: int = 3, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(samples) % classes
        centers = torch.randn(classes, 1, 3, generator=g, dtype=torch.float64)
        self.inputs = centers[self.labels] + torch.randn(samples, 5, 3, generator=g, dtype=torch.float64)

    resident = True

    def draw(self, count, generator):
        return torch.zeros(count, 0)

    def batch(self, samples, drawn):
        return self.inputs[samples], self.labels[samples]

    def losses(self, model, batch):
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels, reduction="none")

    held_out = 200

    kind = Hits()

    def outputs(self, model, start, stop):
        return self.outputs_of(model, torch.arange(start, stop))

    def outputs_of(self, model, samples):
        logits, labels = model(self.inputs[samples]), self.labels[samples]
        losses = F.cross_entropy(logits, labels, reduction="none")
        return torch.stack([losses, (logits.argmax(-1) == labels).double()], -1)

    def score(self, outputs):
        loss, accuracy = outputs.mean(0).tolist()
        return Evaluation(loss, {"accuracy": accuracy})


def batch_of(task, samples: np.ndarray, seed: int = 0):
    """The batch of these samples, augmented as a generator with this seed draws."""
    return task.batch(torch.from_numpy(samples), task.draw(len(samples), torch.Generator().manual_seed(seed)))


def attention_model(seed: int = 0) -> SmallTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallTransformer().double()


def unequal_clients(task: SequenceTask, sizes=(5, 40, 13, 60, 22)) -> list[np.ndarray]:
    """Clients of unequal size, sorted by class so that they differ."""
    order = np.argsort(task.labels.numpy(), kind="stable")
    ends = np.cumsum(sizes)
    return [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def held_out_samples(task: SequenceTask, sizes=(9, 0, 1, 23, 4)) -> list[np.ndarray]:
    """Held-out samples of clients: as many as `sizes` say, of all classes."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
