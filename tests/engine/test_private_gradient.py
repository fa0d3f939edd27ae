"""The gradient of a step with privacy of samples: what a sample can change, the noise, and whose gradients they are."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import SequenceTask, attention_model
from torch import nn

from fedadamw.engine.private_gradient import SampleGradients, SamplePrivacy
from fedadamw.engine.vmap_rules import _attention_by_formula
from fedadamw.engine.workspace import Workspace
from fedadamw.randomness import OperatingSystem, Purpose, Seeded, draw_poisson_batches
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError

CPU = torch.device("cpu")


class Rows:
    """Samples that are given as they are: inputs (n, ...) and labels (n,)."""

    resident, lengths = True, None

    def losses(self, model, batch):
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels, reduction="none")


class Slopes(Rows):
    """Samples that are their own gradients, (n, d)."""

    def losses(self, model, batch):
        return model(batch[0]).squeeze(-1)


def privacy_of(clip=1.0, sigma=0.0, size=1, seed=0):
    return SamplePrivacy(clip, sigma, size, Seeded(seed))


def sums_of(model, task=None, privacy=None, **training):
    how = TrainingSettings(steps=1, clip=None, **training)
    return SampleGradients(Workspace(model), task or Rows(), how, privacy or privacy_of())


def sum_of(sums, *batch):
    sums.fill(batch if len(batch[0]) else ())
    return sums.workspace.gradient.clone()


def slopes(numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 3)


NUMBER = st.floats(-1e6, 1e6) | st.floats(-1e-6, 1e-6) | st.sampled_from([1e200, -1e300, math.inf, -math.inf, math.nan])
SAMPLES = st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=6)


LINEAR = nn.Linear(3, 1, bias=False).double()
OF_CLIP = {clip: sums_of(LINEAR, Slopes(), privacy_of(clip)) for clip in (1e-3, 1.0, 50.0)}


@given(SAMPLES, st.integers(0, 5), st.sampled_from(list(OF_CLIP)))
@settings(max_examples=40, deadline=None)
def test_one_sample_more_or_less_moves_the_sum_by_at_most_the_clip(samples, place, clip):
    moves = moved(samples, place, lambda batch: sum_of(OF_CLIP[clip], batch))
    assert moves <= clip * (1 + 1e-6)


def test_the_same_is_not_true_of_a_clipped_mean():
    def clipped_mean(batch):
        mean = batch.sum(0) / max(len(batch), 1)
        return len(batch) * mean * min(1.0, 1.0 / float(mean.norm()))  # as a sum, as above

    with pytest.raises(AssertionError):
        assert moved([(3.0, 0.0, 0.0), (-2.9, 0.0, 0.0), (0.0, 4.0, 0.0)], 0, clipped_mean) <= 1 + 1e-6


def moved(samples, place, of):
    batch = slopes(samples)
    fewer = torch.cat([batch[: place % len(batch)], batch[place % len(batch) + 1 :]])
    difference = of(batch) - of(fewer)
    assert difference.isfinite().all()
    return float(difference.norm())


def test_a_sample_whose_gradient_is_not_finite_counts_as_nothing():
    batch = slopes([[0.3, 0.4, 0.0], [math.nan, 0.0, 0.0], [1e300, 1e300, 0.0], [math.inf, 0.0, 0.0], [0.0, 0.0, 9.0]])
    total = sum_of(sums_of(LINEAR, Slopes()), batch)
    torch.testing.assert_close(total, torch.tensor([0.3, 0.4, 1.0], dtype=torch.float64))


def test_long_gradients_in_float32_are_no_longer_than_the_clip():
    model = nn.Linear(300_000, 1, bias=False)
    batch = torch.randn(4, 300_000, generator=torch.Generator().manual_seed(0))
    for row in batch:
        assert float(sum_of(sums_of(model, Slopes()), row[None]).double().norm()) <= 1 + 1e-6


class Body(nn.Module):
    """Layers of many kinds; a part is frozen."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.embed, self.mlp = nn.Linear(4, 6), nn.Linear(6, 6)
        self.layer_norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.mlp.requires_grad_(requires_grad=False)

    def forward(self, x):
        y = self.embed(torch.relu(self.norm(self.conv(x))).transpose(1, 2))
        y = y + F.scaled_dot_product_attention(y, y, y)
        return self.head(self.layer_norm(torch.tanh(self.mlp(y))).mean(1))


def body_and_batch(n=7):
    torch.manual_seed(0)
    model = Body().double()
    return model, torch.randn(n, 2, 5, dtype=torch.float64), torch.arange(n) % 3


def literal_sum(model, inputs, labels, clip):
    """One sample after the other, in plain torch."""
    parameters, total = [p for p in model.parameters() if p.requires_grad], 0
    for x, label in zip(inputs, labels, strict=True):
        loss = F.cross_entropy(model(x[None]), label[None])
        g = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])
        total = total + g * min(1.0, clip / float(g.norm()))
    return total


@pytest.mark.parametrize("training", [{}, {"micro_batch": 3}, {"gradient_checkpointing": True}])
def test_gradients_of_samples_are_clipped_one_by_one(training):
    model, inputs, labels = body_and_batch()
    expected = literal_sum(model, inputs, labels, 0.5)
    total = sum_of(sums_of(model, privacy=privacy_of(0.5), **training), inputs, labels)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_gradients_of_samples_are_opacus_s():
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    model, inputs, labels = body_and_batch()
    sums = sums_of(model)
    own = sums._of_client(sums.workspace.layout.views(sums.workspace.y), {}, (inputs, labels))
    sums.workspace.release()
    wrapped = opacus.GradSampleModule(model, loss_reduction="sum")
    F.cross_entropy(wrapped(inputs), labels, reduction="sum").backward()
    theirs = {name: p.grad_sample for name, p in model.named_parameters() if p.requires_grad}
    assert own.keys() == theirs.keys()
    for name, g in theirs.items():
        torch.testing.assert_close(own[name], g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [{"micro_batch": 3}, {"gradient_checkpointing": True}])
def test_stacked_clients_have_the_sums_of_each(training):
    model, inputs, labels = body_and_batch(8)
    sums = sums_of(model, privacy=privacy_of(0.5), **training)
    y = torch.stack([sums.workspace.y, sums.workspace.y + 0.1])
    real = torch.tensor([[True] * 4, [True, False, False, False]])
    found = sums.sum_stacked(y, {}, (inputs.unflatten(0, (2, 4)), labels.unflatten(0, (2, 4))), real)
    for own, model_of, kept in zip(found, y, (slice(4), slice(4, 5)), strict=True):
        sums.workspace.load(model_of, sums.workspace.statistics)
        torch.testing.assert_close(own, sum_of(sums, inputs[kept], labels[kept]), rtol=1e-10, atol=1e-12)


def test_the_noise_has_its_standard_deviation():
    privacy = privacy_of(clip=2.0, sigma=1.5, size=50)
    g = torch.zeros(1_000_000, dtype=torch.float32)
    privacy.finish(g, privacy.noise(0, 0, CPU))
    assert float(g.double().std()) == pytest.approx(1.5 * 2.0 / 50, rel=0.01)
    assert float(g.double().square().mean()) == pytest.approx(privacy.phi, rel=0.01)
    assert abs(float(g.double().mean())) < 4 * privacy.phi**0.5 / 1000
    fourth = float(g.double().pow(4).mean()) / privacy.phi**2
    assert fourth == pytest.approx(3, rel=0.02), "as of a Gaussian"


def test_noise_differs_between_steps_clients_and_rounds():
    privacy = privacy_of(sigma=1.0)

    def drawn(round_, client, steps=1):
        noise, g = privacy.noise(round_, client, CPU), []
        for _ in range(steps):
            g.append(torch.zeros(20))
            privacy.finish(g[-1], noise)
        return g

    first, second = drawn(0, 0, 2)
    assert torch.equal(drawn(0, 0)[0], first)
    for other in (second, *drawn(1, 0), *drawn(0, 1)):
        assert not torch.equal(other, first)


def test_the_divisor_is_the_nominal_size_of_a_batch():
    privacy = privacy_of(size=50)
    g = torch.full((3,), 10.0)
    privacy.finish(g, privacy.noise(0, 0, CPU))
    assert g.tolist() == pytest.approx([0.2] * 3)
    assert (privacy.rate(200), privacy.rate(20)) == (0.25, 1.0)


def test_sizes_of_batches_are_binomial():
    n, rate, steps = 40, 0.2, 5000
    batches = draw_poisson_batches(np.arange(100, 100 + n), np.random.default_rng(0), rate=rate, steps=steps)
    sizes = np.array([len(batch) for batch in batches])
    expected = np.array([math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)])
    common = expected * steps > 20
    found = np.bincount(sizes, minlength=n + 1)
    chi = ((found - steps * expected) ** 2 / (steps * expected))[common].sum()
    assert chi < 2 * common.sum() + 10, "of as many degrees of freedom"
    assert sizes.mean() == pytest.approx(n * rate, abs=4 * (n * rate * (1 - rate) / steps) ** 0.5)
    drawn = np.stack([np.isin(np.arange(100, 100 + n), batch) for batch in batches])
    assert abs(drawn.mean(0) - rate).max() < 5 * (rate * (1 - rate) / steps) ** 0.5
    together = np.corrcoef(drawn.T) - np.eye(n)
    assert abs(together).max() < 6 / steps**0.5, "each is drawn on its own"
    assert all((np.diff(batch) > 0).all() for batch in batches), "no sample twice"


def test_dropout_differs_from_sample_to_sample():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 3)).double()
    inputs, labels = torch.ones(2, 4, dtype=torch.float64), torch.tensor([1, 1])
    sums = sums_of(model)
    one, other = sums._of_client(sums.workspace.layout.views(sums.workspace.y), {}, (inputs, labels))["0.weight"]
    assert not torch.equal(one == 0, other == 0)


class Attending(nn.Module):
    """Attention with dropout."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x)
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.5 if self.training else 0.0).mean(1)


def test_attention_drops_in_stacked_clients_too():
    torch.manual_seed(0)
    sums = sums_of(Attending().double(), privacy=privacy_of(clip=1e12))
    inputs, labels = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.long)
    y = sums.workspace.y.expand(2, -1).clone()
    first, second = (sums.sum_stacked(y, {}, (inputs, labels), labels == 0) for _ in range(2))
    assert not torch.equal(first, second)
    sums.workspace.module.eval()
    expected = torch.stack([sum_of(sums, *client) for client in zip(inputs, labels, strict=True)])
    torch.testing.assert_close(sums.sum_stacked(y, {}, (inputs, labels), labels == 0), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", [None, torch.arange(6) < 4, torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)])
def test_attention_that_drops_nothing_is_torch_s(causal, mask):
    q, k, v = (torch.randn(2, heads, 6, 4, dtype=torch.float64) for heads in (4, 2, 2))
    how = {
        "attn_mask": None if causal or mask is None else mask[None],
        "is_causal": causal,
        "scale": 0.7,
        "enable_gqa": True,
    }
    found = _attention_by_formula(q, k, v, dropout_p=1e-300, **how)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, **how), rtol=1e-10, atol=1e-12)


def test_with_bf16_the_gradients_are_close_and_clipped():
    torch.manual_seed(0)
    model, inputs, labels = body_and_batch()
    model, inputs = model.float(), inputs.float()
    exact = sum_of(sums_of(model, privacy=privacy_of(0.5)), inputs, labels)
    half = sum_of(sums_of(model, privacy=privacy_of(0.5), precision="bf16"), inputs, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0, atol=0.03)
    assert not torch.equal(half, exact)


class Peeking(nn.Linear):
    """A model whose code looks at a number."""

    def forward(self, x):
        return super().forward(x * 2 if float(x.sum()) > 0 else x)


def test_a_model_that_vmap_does_not_take_trains_one_sample_after_the_other():
    torch.manual_seed(0)
    model = Peeking(3, 3).double()
    inputs, labels = torch.randn(5, 3, dtype=torch.float64), torch.arange(5) % 3
    expected = literal_sum(model, inputs, labels, 0.5)
    sums = sums_of(model, privacy=privacy_of(0.5))
    with pytest.warns(UserWarning, match="no gradients of many samples at once .* one after the other"):
        total = sum_of(sums, inputs, labels)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sum_of(sums, inputs, labels), expected, rtol=1e-10, atol=1e-12)


class Counting(nn.Linear):
    """A model that keeps a mean of what it saw."""

    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.seen += x.detach().mean(0)
        return super().forward(x)


class Replacing(Counting):
    """The same, in a new tensor each time."""

    def forward(self, x):
        self.seen = self.seen + x.detach().mean(0)
        return nn.Linear.forward(self, x)


@pytest.mark.filterwarnings("ignore:this model has no gradients of many samples")
def test_what_a_model_keeps_of_samples_without_noise_is_refused():
    with pytest.raises(InputError, match="'seen' changes while the model trains"):
        sum_of(sums_of(Counting()), torch.randn(4, 3), torch.arange(4) % 3)
    with pytest.raises(InputError, match="'seen' changes while the model trains"):
        sum_of(sums_of(Replacing()), torch.randn(4, 3), torch.arange(4) % 3)
    with pytest.raises(InputError, match="BatchNorm mixes samples.*take a model with LayerNorm or GroupNorm"):
        sums_of(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))


def test_an_empty_batch_gives_noise_only():
    sums = sums_of(attention_model(), SequenceTask(), privacy_of(sigma=1.0, size=10))
    assert not sum_of(sums, torch.zeros(0)).any()
    sums.privacy.finish(sums.workspace.gradient, sums.privacy.noise(0, 0, CPU))
    assert float(sums.workspace.gradient.std()) == pytest.approx(0.1, rel=0.3)


def test_noise_of_the_operating_system_is_never_the_same():
    entropy = OperatingSystem()
    drawn = [torch.randn(8, generator=entropy.torch(Purpose.PRIVATE_NOISE, 0, 0, device=CPU)) for _ in range(2)]
    assert not torch.equal(*drawn)
    first, second = (entropy.numpy(Purpose.PRIVATE_BATCHES, 0, 0).random(8) for _ in range(2))
    assert (first != second).any()
    generator = entropy.torch(Purpose.PRIVATE_NOISE, device=CPU)
    same_seed = torch.Generator().manual_seed(generator.initial_seed())
    drawn = torch.randn(100_000, generator=generator)
    assert not torch.equal(drawn[:8], torch.randn(8, generator=same_seed)), "its whole state is drawn, not a seed"
    assert float(drawn.std()) == pytest.approx(1, rel=0.02)
