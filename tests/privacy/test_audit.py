"""An attacker who knows everything but one sample learns less of it than the accountant allows, and not much less.

A canary is put into one of 10,000 runs of a client's round, and a sample without a gradient into its place in 10,000
others. An attacker who sees the upload guesses by a threshold which of the two it was. Any threshold's true and false
positives give a lower bound of epsilon: log((TPR - delta) / FPR). The threshold is chosen on half of the runs; the
bound is computed on the other half, from Clopper-Pearson bounds of both rates, 95% each.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.engine.client import Broadcast, Shard
from fedadamw.engine.private_gradient import SampleGradients, SamplePrivacy
from fedadamw.engine.stacked import Stacked
from fedadamw.engine.step import make_step
from fedadamw.engine.workspace import Workspace
from fedadamw.randomness import Seeded
from fedadamw.settings.training import TrainingSettings

RUNS = 10_000
SAMPLES, BATCH, STEPS = 4, 2, 4  # of a client; each sample is in a batch with probability 1/2
CLIP, SIGMA, DELTA = 0.1, 1.5, 1e-3
CANARY, ERROR = 50.0, 0.05


class Slopes:
    """One number is learned; a sample's loss is its slope times that number, so its gradient is its slope."""

    resident, lengths, held_out, unpooled = True, None, 0, ()

    def __init__(self, canary, others=0.0):
        self.slopes = torch.full((SAMPLES,), others, dtype=torch.float64)
        self.slopes[0] = canary

    def draw(self, count, generator):
        return torch.zeros(count, 0)

    def batch(self, samples, drawn):
        return (self.slopes[samples],)

    def losses(self, model, batch):
        return model(batch[0][:, None])[:, 0]


def uploads(task, *, seed, noise=SIGMA):
    """What RUNS clients with the same samples upload after a round of several steps, (RUNS,)."""
    workspace = Workspace(nn.Linear(1, 1, bias=False).double())
    training = TrainingSettings(rounds=1, clients_per_round=1, steps=STEPS, batch_size=BATCH, lr=1.0, clip=None)
    privacy = SamplePrivacy(CLIP, noise, BATCH, Seeded(seed))
    algorithm = FedAvg()
    step = make_step(algorithm, None, "plain")
    engine = Stacked(workspace, algorithm, task, training, seed, step, group=RUNS, privacy=privacy)
    down = algorithm.broadcast(algorithm.server_init(torch.zeros(1, dtype=torch.float64)))
    broadcast = Broadcast(0, down, workspace.statistics, torch.zeros(0))
    shards = [Shard(client, np.arange(SAMPLES), None) for client in range(RUNS)]
    return np.array([answer.up.delta.item() for _, answer in engine.train(shards, broadcast)])


def epsilon_at_least(present, absent):
    """The greatest lower bound of epsilon by a threshold on what is uploaded with the canary, and without it."""
    half = len(present) // 2
    thresholds = np.quantile(absent[:half], np.linspace(0.5, 1 - 2 / half, 400))
    best = max(thresholds, key=lambda threshold: bound(present[:half] > threshold, absent[:half] > threshold))
    return bound(present[half:] > best, absent[half:] > best)


def bound(right, wrong):
    """The lower bound from guesses `present` that are right, and that are wrong."""
    hits, misses, n = int(right.sum()), int(wrong.sum()), len(right)
    true_positives = stats.beta.ppf(ERROR, hits, n - hits + 1) if hits else 0.0
    false_positives = stats.beta.ppf(1 - ERROR, misses + 1, n - misses)
    return math.log((true_positives - DELTA) / false_positives) if true_positives > DELTA else -math.inf


def theory():
    from fedadamw.privacy.accountant import Mechanism, compute_epsilon

    return compute_epsilon([Mechanism(SIGMA, BATCH / SAMPLES, STEPS)], DELTA)


@pytest.mark.slow
def test_the_canarys_epsilon_lies_below_theory_and_above_a_third_of_it():
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    found = epsilon_at_least(uploads(Slopes(-CANARY), seed=0), uploads(Slopes(0.0), seed=1))
    assert theory() / 3 < found < theory()


@pytest.mark.slow
def test_the_audit_catches_half_the_noise():
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")
    present, absent = (uploads(Slopes(slope), seed=seed, noise=SIGMA / 2) for seed, slope in enumerate((-CANARY, 0.0)))
    assert epsilon_at_least(present, absent) > theory()


@pytest.mark.slow
def test_the_audit_catches_clipped_means_of_batches(monkeypatch):
    pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

    whole = SampleGradients.sum_stacked

    def clip_means(self, y, buffers, batch, real):
        unclipped = replace(self.privacy, clip=1e9)
        total = whole(SampleGradients(self.workspace, self.task, self.training, unclipped), y, buffers, batch, real)
        mean = total / real.sum(1, keepdim=True).clamp(min=1)
        return BATCH * mean * (CLIP / mean.abs().clamp(min=1e-9)).clamp(max=1.0)

    monkeypatch.setattr(SampleGradients, "sum_stacked", clip_means)
    present, absent = (uploads(Slopes(slope, 1.0), seed=seed) for seed, slope in enumerate((-CANARY, 0.0)))
    assert epsilon_at_least(present, absent) > theory()
