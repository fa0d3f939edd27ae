"""Robust means against their definitions, and in runs with a malicious client."""

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean

from fedadamw.engine.robust import RobustMean, krum, median, trimmed_mean
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError


@pytest.mark.parametrize("clients", [1, 2, 5, 6])
def test_median_and_trimmed_mean_match_numpy_and_scipy(clients):
    x = torch.randn(clients, 40, dtype=torch.float64)
    np.testing.assert_allclose(median(x), np.median(x, 0), rtol=1e-12)
    count = 1 if clients > 2 else 0
    np.testing.assert_allclose(trimmed_mean(x, count), trim_mean(x.numpy(), count / clients + 1e-9, 0), rtol=1e-12)


def test_krum_matches_its_definition():
    x = torch.randn(7, 5, dtype=torch.float64)
    scores = []
    for i in range(7):
        others = sorted(float(((x[i] - x[j]) ** 2).sum()) for j in range(7) if j != i)
        scores.append(sum(others[: 7 - 2 - 2]))
    assert krum(x, 2) == sorted(sorted(range(7), key=scores.__getitem__)[:3])


def test_krum_drops_distant_updates():
    x = torch.zeros(6, 3) + 0.1 * torch.randn(6, 3)
    x[4] += 100
    assert 4 not in krum(x, 1)


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "krum"])
def test_one_malicious_client_barely_moves_a_robust_mean(kind):
    honest = [torch.randn(50, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    mean = RobustMean(kind, 1)
    for t in [*honest, torch.full((50,), 1e6)]:
        mean.add([t, t[:1]], 1.0)
    mean.add([torch.full((50,), torch.nan), torch.zeros(1)], 0.0)  # who is left out counts nothing
    found = mean.result()
    assert float((found[0] - torch.stack(honest).mean(0)).norm()) < 6
    assert found[1].shape == (1,)


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "krum"])
@pytest.mark.parametrize("name", ["fedadamw", "scaffold"])
def test_runs_with_robust_means_learn(kind, name):
    settings = [f"training.mean={kind}", "training.rounds=3", "training.steps=4", f"algorithm.name={name}"]
    lr = {"fedadamw": 1e-3, "scaffold": 0.1}[name]
    simulation = prepare(load("digits", [*settings, f"training.lr={lr}", "training.evaluate_every=1"])).simulation()
    losses = [record.test_loss for record in simulation.rounds()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("clients", "liars"), [(5, 1), (7, 2), (9, 3)])
def test_krum_tolerates_colluding_clients(clients, liars):
    """The least number of clients for so many liars, who all send the same and so are closest to each other."""
    honest, lie = torch.randn(clients - liars, 50), torch.full((liars, 50), 1e3)
    assert not set(krum(torch.cat([honest, lie]), liars)) & set(range(clients - liars, clients))


def test_krum_takes_the_median_of_the_other_fields():
    mean = RobustMean("krum", 1)
    for number in range(5):
        mean.add([torch.randn(10), torch.tensor([1e6 if number == 2 else 1.0])], 1.0)
    assert mean.result()[1].tolist() == [1.0]


@pytest.mark.parametrize(("kind", "clients"), [("trimmed-mean", 2), ("krum", 4)])
def test_too_few_clients_for_that_many_malicious_ones_are_refused(kind, clients):
    with pytest.raises(InputError, match=f"needs {clients + 1} clients a round, not {clients}"):
        prepare(load("digits", [f"training.mean={kind}", f"training.clients_per_round={clients}"]))
