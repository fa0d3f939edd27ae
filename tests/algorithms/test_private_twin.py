"""FedAdamW with privacy of samples, against a literal loop from its pseudo-code, and what its second moments are."""

import math

import numpy as np
import pytest
import torch
from support.cases import CASES
from support.runs import literal_problem, simulation
from support.sequences import attention_model, batch_of, unequal_clients

from fedadamw.directions.adamw import NoiseInMoments
from fedadamw.engine.private_gradient import SamplePrivacy
from fedadamw.randomness import GAUSSIANS, Purpose, Seeded, numpy_generator, sample_clients, torch_generator
from fedadamw.vector import Layout, trainable

C, SIGMA, B, STEPS, ROUNDS, F = 0.5, 0.8, 6, 3, 3, 0.2
PHI = (SIGMA * C / B) ** 2
HOW = {"epochs": None, "steps": STEPS, "batch_size": B, "clients_per_round": 3, "rounds": ROUNDS}


def gradients_of_round(task, clients, round_):
    """For each sampled client its noisy gradient functions, one a local step, each y -> list of numbers."""
    model = attention_model()
    layout = Layout.of(model)

    def of_sample(y, sample):
        leaf = torch.tensor(y, dtype=torch.float64, requires_grad=True)
        inputs, labels = batch_of(task, np.array([sample]))
        logits = torch.func.functional_call(model, layout.views(leaf), (inputs,))
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels), leaf)[0].tolist()

    def step(samples, noise):
        def gradient(y):
            total = [0.0] * len(y)
            for sample in samples:
                g = of_sample(y, sample)
                shrink = min(1.0, C / math.sqrt(sum(number**2 for number in g)))
                total = [a + shrink * number for a, number in zip(total, g, strict=True)]
            for _ in range(GAUSSIANS):  # their sum has the standard deviation sigma C
                drawn = torch.randn(len(y), generator=noise, dtype=torch.float64).tolist()
                total = [a + SIGMA * C / math.sqrt(GAUSSIANS) * n for a, n in zip(total, drawn, strict=True)]
            return [number / B for number in total]

        return gradient

    found = {}
    for i in sample_clients(0, round_, len(clients), 3):
        draws = numpy_generator(0, Purpose.PRIVATE_BATCHES, round_, i)
        noise = torch_generator(0, Purpose.PRIVATE_NOISE, round_, i, device=torch.device("cpu"))
        own = clients[i]
        found[int(i)] = [step(own[draws.random(len(own)) < B / len(own)], noise) for _ in range(STEPS)]
    return found


@pytest.mark.parametrize("name", ["fedadamw-mean-v", pytest.param("local-adamw", marks=pytest.mark.slow)])
def test_engine_equals_the_literal_loop_of_private_steps(name, task):
    case, clients = CASES[name], unequal_clients(task)
    noise = NoiseInMoments(PHI, F)
    sim = simulation(case, task, noise=noise, privacy=SamplePrivacy(C, SIGMA, B, Seeded(0)), **HOW | {"rounds": 2})
    assert sim.clients.privacy.phi == pytest.approx(PHI)
    rounds = [(sim.training.lr_at(r), gradients_of_round(task, clients, r)) for r in range(2)]
    x0 = Layout.of(attention_model()).flatten(trainable(attention_model())).tolist()
    problem = literal_problem(attention_model(), len(clients))
    expected = case.twin(x0, rounds, problem, **case.settings, noise=noise)
    for _, x in zip(sim.rounds(), expected, strict=True):
        np.testing.assert_allclose(sim.state.server.x.numpy(), x, rtol=0, atol=1e-10)


def debiased(task, sigma, seed):
    """The mean over coordinates of the carried v_hat after three rounds, the noise subtracted, before the floor.

    Clients have whole batches and hardly move, so that without noise it does not depend on the seed.
    """
    case, clients = CASES["fedadamw-mean-v"], [np.arange(i * B, (i + 1) * B) for i in range(3)]
    privacy = SamplePrivacy(C, sigma, B, Seeded(seed))
    how = {**HOW, "lr": 1e-9, "clients": clients, "clients_per_round": 3, "steps": 2}
    sim = simulation(case, task, noise=NoiseInMoments(privacy.phi, F), privacy=privacy, **how)
    list(sim.rounds())
    t, beta2 = float(sim.state.server.t), 0.999
    assert t == 2 * ROUNDS
    return float(sim.algorithm.blocks.expand(sim.state.server.v).mean()) / (1 - beta2**t) - privacy.phi


def test_carried_second_moments_are_those_without_noise_on_average(task):
    expected = debiased(task, 0.0, 0)
    found = np.array([debiased(task, SIGMA, seed) for seed in range(8)])
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - expected) < 3 * error
    assert error < PHI / 20, "noise that was not subtracted, or twice, would be found"
