"""A small model and data of one's own, and `simulate` on them."""

import torch
from torch import nn
from torch.utils.data import Dataset

import fedadamw


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def points(count=240, dtype=torch.float32):
    """Four classes of 8 x 8 pictures."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 8, 8, generator=generator).to(dtype)
    halves = (x[:, 0, :4].sum((1, 2)) > 0).long(), (x[:, 0, 4:].sum((1, 2)) > 0).long()
    return x, halves[0] + 2 * halves[1]


def cnn(dtype=torch.float32, dropout=0.0):
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 4)
    return nn.Sequential(*layers).to(dtype)


CLIENTS = [range(i, 200, 8) for i in range(8)]
FEW = {"rounds": 3, "clients_per_round": 4, "steps": 3, "batch_size": 10, "lr": 3e-3, "quiet": True, "device": "cpu"}


def simulate(model=None, train=None, test=None, clients=CLIENTS, *, dtype=torch.float32, **changes):
    x, y = points(dtype=dtype)
    given = {"metrics": {"accuracy": accuracy}, **FEW, **changes}
    return fedadamw.simulate(
        cnn(dtype) if model is None else model,
        (x[:200], y[:200]) if train is None else train,
        (x[200:], y[200:]) if test is None else test,
        clients,
        **given,
    )


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def numbers(result):
    """What every run of the same computes: all but the time."""
    return [
        (r.round, r.lr, r.train_loss, r.test_loss, r.test_metrics, r.up_bytes, r.down_bytes) for r in result.records
    ]


class Pictures(Dataset):
    """As tensors, or with a random shift drawn in __getitem__; from `asked` on it notes what is read."""

    def __init__(self, first, stop, *, shift=False):
        self.x, self.y = (t[first:stop] for t in points())
        self.shift = shift

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        x = self.x[index]
        return (x.roll(int(torch.randint(8, ())), -1) if self.shift else x), self.y[index]
