"""FedAdamW's memory: its limits are the paper's method and no sharing, and it bounds the first steps of a round."""

import math

import pytest
import torch
from support.cases import CASES, Case, fast_first
from support.runs import simulation
from support.sequences import SequenceTask

from fedadamw.algorithms.fedadamw import forget
from fedadamw.directions.adamw import Moments, adamw, debias
from fedadamw.settings.load import load

BETAS = (0.9, 0.999)


def weights(**settings) -> torch.Tensor:
    """The model after some rounds."""
    case = CASES["fedadamw-mean-v"]
    run = simulation(Case("fedadamw", settings, case.twin, case.lr, case.up, case.down), SequenceTask())
    list(run.rounds())
    return run.state.server.x


@pytest.mark.parametrize("share", fast_first(["mean-v", "vm"], ["v", "m"]))
def test_the_limits_are_the_same_bits(share):
    assert torch.equal(weights(share=share, memory=math.inf), weights(share=share))
    assert torch.equal(weights(share=share, memory=0), weights(share="none"))
    assert not torch.equal(weights(share=share, memory=1), weights(share=share))


def test_debiased_moments_stay_and_count_for_fewer_gradients():
    g = torch.Generator().manual_seed(0)
    m, v, t = torch.randn(5, generator=g).double(), torch.rand(5, generator=g).double(), torch.tensor([40.0]).double()
    new_m, new_v, kept = forget(m, v, t, betas=BETAS, memory=3.0)
    assert kept.item() == 3.0
    for old, new, beta in ((m, new_m, 0.9), (v, new_v, 0.999)):
        torch.testing.assert_close(new / debias(beta, kept), old / debias(beta, t), rtol=1e-13, atol=0)
    assert forget(m, v, t, betas=BETAS, memory=50.0)[2] is not None
    torch.testing.assert_close(forget(m, v, t, betas=BETAS, memory=50.0)[1], v, rtol=1e-15, atol=0)


@pytest.mark.parametrize("memory", [0.0, 1.0, 8.0])
def test_the_first_step_is_at_most_the_root_of_memory_plus_one(memory):
    tiny, t = torch.full((1,), 1e-12).double(), torch.tensor([memory]).double()  # what is carried says nothing
    u, _ = adamw(
        torch.ones(1).double(),
        Moments(torch.zeros(1).double(), tiny * debias(0.999, t)),
        torch.ones(1).double(),
        t + 1,
        betas=BETAS,
        eps=1e-8,
    )
    assert u.item() == pytest.approx(math.sqrt(memory + 1), rel=1e-2)


def test_no_limit_and_infinity_are_the_same_setting():
    unlimited = load("digits", ["algorithm.memory=.inf"])
    assert unlimited == load("digits", [])
    assert "memory: null" in unlimited.to_yaml()
    with pytest.raises(ValueError, match="memory=-1.0 must not be negative"):
        load("digits", ["algorithm.memory=-1"])
