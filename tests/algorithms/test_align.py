"""FedAdamW's rules of alignment: each is the paper's where it finds nothing to object to; what they do elsewhere."""

from dataclasses import replace

import pytest
import torch
from support.cases import CASES
from support.runs import simulation

from fedadamw.algorithms.fedadamw import FedAdamW, MeasuredUp, Up
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.align import ALIGN, bounded, cautious
from fedadamw.settings.load import load
from fedadamw.vector import squared_norm

LR = torch.tensor(0.1, dtype=torch.float64)


def last_model(task, align, **settings):
    """The model after some rounds of one client each, by plain steps."""
    case = CASES["fedadamw-mean-v"]._replace(settings={"align": align, **settings})
    run = simulation(case, task, clients_per_round=1, step="plain")
    list(run.rounds())
    return run.state.server.x


def test_clients_that_agree_are_aligned_always(task):
    assert torch.equal(last_model(task, "agreement"), last_model(task, "always"))


def test_a_bound_that_is_not_reached_changes_nothing(task):
    assert torch.equal(last_model(task, "bounded", alpha=1e-3), last_model(task, "always", alpha=1e-3))
    assert not torch.equal(last_model(task, "bounded", alpha=1.0), last_model(task, "always", alpha=1.0))


def test_a_direction_of_the_clients_own_signs_is_followed_always():
    def end(align):
        algorithm = FedAdamW(blocks=Blocks.of(torch.nn.Linear(3, 2)), align=align, weight_decay=0.0)
        generator, server = torch.Generator().manual_seed(0), algorithm.server_init(torch.zeros(8).double())
        for _ in range(3):
            down = algorithm.broadcast(server)
            local = algorithm.client_start(down, ())
            for _ in range(4):
                g = torch.rand(8, generator=generator, dtype=torch.float64)  # all are above 0
                local = algorithm.client_step(local, down, g, LR)
            server = algorithm.server_update(server, algorithm.client_finish(local, down, LR)[0], LR, LR)
        return server.x

    assert torch.equal(end("cautious"), end("always"))


def test_cautious_steps_ignore_the_direction_where_its_sign_is_another():
    u, delta = torch.tensor([1.0, -1.0, 2.0, 0.0]), torch.tensor([0.5, 0.5, -0.5, 0.5])
    assert cautious(u, delta, 0.5).tolist() == [0.5, 0.0, 0.0, 0.0]


def test_bounded_steps_go_at_most_as_far_along_the_direction_as_along_their_own():
    u, delta = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(bounded(u, delta, 0.5), torch.tensor([[0.0, 2.0], [0.0, 1.0], [0.0, 0.0]]))
    assert bounded(u, torch.zeros(2), 0.5).abs().max() == 0
    assert torch.equal(bounded(u[0], delta, 0.0), delta)


@pytest.mark.parametrize(
    ("updates", "agreement"), [([[1, 2], [1, 2]], 1), ([[3, 0], [0, 3]], 1 / 2), ([[1, 0], [-1, 0]], 0)]
)
def test_agreement_of_equal_orthogonal_and_opposite_updates(updates, agreement):
    deltas = torch.tensor(updates, dtype=torch.float64)
    algorithm = FedAdamW(blocks=Blocks.of(torch.nn.Linear(1, 1)), align="agreement", share="none")
    nothing, one = torch.zeros(0), torch.ones(1).double()
    up = Up(deltas.mean(0), nothing, nothing, one)
    server = algorithm.server_init(torch.zeros(2).double())
    scaled = algorithm.server_update(server, MeasuredUp(*up, squared_norm(deltas).mean(0)), LR, LR).delta
    torch.testing.assert_close(
        scaled, agreement * replace(algorithm, align="always").server_update(server, up, LR, LR).delta
    )


def test_a_robust_mean_that_is_longer_than_the_updates_does_not_lengthen_the_direction():
    algorithm = FedAdamW(blocks=Blocks.of(torch.nn.Linear(1, 1)), align="agreement", share="none")
    nothing, one = torch.zeros(0), torch.ones(1).double()
    up = Up(torch.tensor([1.0, 1.0]).double(), nothing, nothing, one)  # the median of (1, 1), (1, 0) and (0, 1)
    server = algorithm.server_init(torch.zeros(2).double())
    scaled = algorithm.server_update(server, MeasuredUp(*up, one), LR, LR).delta
    assert torch.equal(scaled, replace(algorithm, align="always").server_update(server, up, LR, LR).delta)


def test_an_unknown_rule_is_refused_in_one_line():
    rules = ", ".join(ALIGN)
    with pytest.raises(ValueError, match=f"align='sometimes' is unknown.*use one of {rules}"):
        load("digits", ["algorithm.align=sometimes"])
