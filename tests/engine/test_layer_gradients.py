"""Gradients of samples, layer by layer, are those of each sample alone; where they cannot be, nothing is assumed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedadamw.engine.layer_gradients import LayerGradients
from fedadamw.engine.private_gradient import SampleGradients, SamplePrivacy
from fedadamw.engine.summands import Products, Rows
from fedadamw.engine.workspace import Workspace
from fedadamw.models import vision
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.randomness import Seeded
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.training import TrainingSettings

TRAINING = TrainingSettings(rounds=1, clients_per_round=1, steps=1, batch_size=4, lr=0.1)


class Labelled:
    """A task of batches (inputs, labels)."""

    def losses(self, model, batch):
        out = model(batch[0])
        return F.cross_entropy(getattr(out, "logits", out), batch[1], reduction="none")


class First(nn.Module):
    """Takes the first position of (n, positions, width)."""

    def forward(self, x):
        return x[:, 0]


class Scaled(nn.Module):
    """A token that all samples begin with, and a number of their own that multiplies all."""

    def __init__(self, *, number: bool = False) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        if number:
            self.number = nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return x * self.number if hasattr(self, "number") else x


class Reused(nn.Module):
    """A weight that is also used outside of its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return F.linear(self.layer(x), self.layer.weight)[:, 0]


class Twice(Reused):
    """A layer that is called twice."""

    def forward(self, x):
        return self.layer(self.layer(x))[:, 0]


class Centred(Reused):
    """Looks at the whole batch, but only while it trains."""

    def forward(self, x):
        x = self.layer(x)[:, 0]
        return x - x.mean(0) if self.training else x


class Neighbours(Reused):
    """Looks at a little of the next sample, but only while it trains."""

    def forward(self, x):
        x = self.layer(x)[:, 0]
        return x + 1e-3 * x.roll(-1, 0) if self.training else x


class PositionsFirst(nn.Module):
    """A layer whose rows are positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x.transpose(0, 1))[0]


def texts():
    return nn.Sequential(
        Scaled(), nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), First(), nn.Linear(8, 3)
    )


def images():
    strided = nn.Conv2d(2, 4, 3, stride=2, padding=1)
    return nn.Sequential(strided, nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 3))


def vit():
    return vision.build("vit-nano", vision.ImageShape(8, 1, 3), depth=1).model


def lora():
    model = add_adapters(vit(), LoraSettings(r=2, alpha=4, dropout=0.0, target_modules=["q_proj", "v_proj"]), None)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)  # B is zero at first, and has A's gradient zero, too
    return model


SHAPES = {texts: (4, 6), images: (2, 6, 6), vit: (1, 8, 8), lora: (1, 8, 8)}


def made(build, shape=None, n=5):
    torch.manual_seed(0)
    workspace = Workspace(build().double())
    inputs = torch.randn(n, *(SHAPES[build] if shape is None else shape), dtype=torch.float64)
    return workspace, (inputs, torch.arange(n) % 3), LayerGradients.of(workspace, Labelled(), TRAINING)


def alone(workspace, batch):
    """The gradient of each sample alone, (n, d)."""
    found = []
    for i in range(len(batch[0])):
        workspace.gradient.zero_()
        Labelled().losses(workspace.module, tuple(t[i : i + 1] for t in batch)).sum().backward()
        found.append(workspace.gradient.clone())
    return torch.stack(found)


@pytest.mark.parametrize("build", SHAPES)
def test_gradients_are_those_of_samples_alone(build):
    workspace, batch, by_layers = made(build)
    expected = alone(workspace, batch)
    assert by_layers.agrees(batch)
    gradients = by_layers.take(batch)
    assert gradients.keys() == set(workspace.layout.names)
    for (name, g), start, size in zip(
        ((name, gradients[name]) for name in workspace.layout.names),
        workspace.layout.offsets,
        workspace.layout.sizes,
        strict=False,
    ):
        theirs = expected[:, start : start + size]
        torch.testing.assert_close(torch.stack([g.of_sample(i) for i in range(5)]), theirs, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(g.squares(), theirs.square().sum(1), rtol=1e-10, atol=1e-14, msg=name)
        weights, total = torch.rand(5, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        g.add_to(total, weights)
        torch.testing.assert_close(total, weights @ theirs, rtol=1e-10, atol=1e-12)


def test_both_ways_to_keep_them_occur():
    kinds = {type(g) for build in (texts, vit) for g in made(build)[2].take(made(build)[1]).values()}
    assert kinds == {Rows, Products}


@pytest.mark.parametrize("build", SHAPES)
def test_a_clipped_sum_is_that_of_clipped_samples(build):
    workspace, batch, _ = made(build)
    expected = alone(workspace, batch)
    clip = float(expected.norm(dim=1).median())
    sums = SampleGradients(workspace, Labelled(), TRAINING, SamplePrivacy(clip, 0.0, 4, Seeded(0)))
    sums.fill(batch)
    clipped = expected * (clip / expected.norm(dim=1, keepdim=True)).clamp(max=1.0)
    torch.testing.assert_close(workspace.gradient, clipped.sum(0), rtol=1e-10, atol=1e-12)
    assert sums._by_layers is not None


def test_a_sample_that_is_not_finite_counts_as_zero():
    workspace, batch, _ = made(vit)
    sums = SampleGradients(workspace, Labelled(), TRAINING, SamplePrivacy(1e12, 0.0, 4, Seeded(0)))
    sums.fill(batch)
    batch[0][2] = torch.nan
    sums.fill(batch)
    rest = [0, 1, 3, 4]
    expected = alone(workspace, tuple(t[rest] for t in batch)).sum(0)
    sums.fill(batch)
    torch.testing.assert_close(workspace.gradient, expected, rtol=1e-10, atol=1e-12)


def unknown():
    return nn.Sequential(Scaled(number=True), First(), nn.Linear(6, 3))


def tied():
    first, last = nn.Linear(6, 6), nn.Linear(6, 6)
    last.weight = first.weight
    return nn.Sequential(first, First(), last)


def grouped():
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize(("build", "shape"), [(unknown, (4, 6)), (tied, (4, 6)), (grouped, (2, 6, 6))])
def test_other_parameters_are_not_taken_by_layers(build, shape):
    assert made(build, shape)[2] is None


@pytest.mark.parametrize(
    ("build", "shape"),
    [(Reused, (4, 6)), (PositionsFirst, (4, 6)), (PositionsFirst, (5, 6)), (Twice, (4, 6))],
    ids=["used elsewhere", "other rows", "other rows, as many as samples", "called twice"],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_gradient_of_a_sample_is_found_out(build, shape):
    workspace, batch, by_layers = made(build, shape)
    assert by_layers is not None
    sums = SampleGradients(workspace, Labelled(), TRAINING, SamplePrivacy(0.1, 0.0, 4, Seeded(0)))
    expected = alone(workspace, batch)
    clipped = expected * (0.1 / expected.norm(dim=1, keepdim=True)).clamp(max=1.0)
    sums.fill(batch)
    torch.testing.assert_close(workspace.gradient, clipped.sum(0), rtol=1e-10, atol=1e-12)
    assert sums._by_layers is None


@pytest.mark.parametrize("build", [Centred, Neighbours])
def test_a_model_that_looks_at_other_samples_is_found_out(build):
    workspace, batch, by_layers = made(build, (4, 6))
    assert not by_layers.agrees(batch)
    workspace.module.eval()
    assert by_layers.agrees(batch)
    assert not workspace.module.training


class Peeking(Reused):
    """Looks at a number of the batch, which happens to change nothing."""

    def forward(self, x):
        return self.layer(x if float(x.sum()) < 1e9 else -x)[:, 0]


@pytest.mark.filterwarnings("ignore:this model has no gradients of many samples at once")
def test_a_model_that_looks_at_a_number_of_the_batch_is_found_out():
    workspace, batch, _ = made(Peeking, (4, 6))
    sums = SampleGradients(workspace, Labelled(), TRAINING, SamplePrivacy(0.1, 0.0, 4, Seeded(0)))
    sums.fill(batch)
    assert sums._by_layers is None


def dropping():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), First(), nn.Linear(8, 3))


def test_random_dropping_is_no_hindrance():
    workspace, batch, by_layers = made(dropping, (4, 6))
    sums = SampleGradients(workspace, Labelled(), TRAINING, SamplePrivacy(0.1, 0.0, 4, Seeded(0)))
    state = torch.get_rng_state()
    assert by_layers.agrees(batch)
    sums._try_layers(batch)
    assert sums._by_layers is not None
    assert torch.equal(torch.get_rng_state(), state), "a resumed run, which tries again, would drop others"


def test_a_norm_of_products_is_not_too_small_however_much_cancels():
    generator = torch.Generator().manual_seed(0)
    e, x = (torch.randn(200, 6, 40, generator=generator) for _ in range(2))
    e[:, 3:] = -e[:, :3]
    x[:, 3:] = x[:, :3] * (1 + 1e-5 * torch.randn(200, 3, 40, generator=generator))  # nearly all of it cancels
    exact = torch.linalg.matrix_norm(e.double().mT @ x.double()) ** 2
    assert bool((Products(e, x).squares() >= exact).all())
    torch.testing.assert_close(
        Products(e[:, :3], x[:, :3]).squares(), Rows((e[:, :3].mT @ x[:, :3]).flatten(1)).squares(), rtol=1e-3, atol=0
    )
