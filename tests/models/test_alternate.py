"""lora.aggregate=alternate: halves that train in turn, against plain loops, in every engine, after a stop."""

import pytest
import torch
from support.adapters import merged_weights, resume_after_one_round, simulation

from fedadamw.engine.client import plan_work
from fedadamw.engine.simulate import Saved
from fedadamw.validation import InputError

ROUNDS = "training={rounds: 4, clients_per_round: 3, steps: 3, batch_size: 12, lr: 0.01, clip: 1.0}"


def alternate(place, *settings, stack=1):
    return simulation(place, ROUNDS, "lora.aggregate=alternate", *settings, stack=stack)


def rests(name, round_):
    """Whether a parameter rests in a round (from 0): A in the first, B in the second, ..."""
    return ("lora_A", "lora_B")[round_ % 2] in name


def plain_round(sim, algorithm, x, server, round_):
    """One round by plain torch: only what trains requires a gradient. Returns the model and the algorithm's server.

    x: every trained number by name. server: of the half that trains, with all of it.
    """
    module, own = sim.workspace.module, [name for name in x if not rests(name, round_)]
    parameters = {name: p for name, p in module.named_parameters() if name in x}
    lr = torch.tensor(sim.training.lr_at(round_), dtype=torch.float64)
    down, ups = algorithm.broadcast(server), []
    for client in sim.clients.sample(round_):
        local = algorithm.client_start(down, algorithm.client_init(down))
        work = plan_work(sim.task, sim.training, 0, client, sim.clients._present.partition[client], round_)
        for samples, drawn in work.batches():
            at = algorithm.blocks.layout.views(local.y)
            for name, p in parameters.items():
                p.data, p.grad = (at[name] if name in at else x[name]).clone(), None
                p.requires_grad = name in own
            sim.task.losses(module, sim.task.batch(samples, drawn)).mean().backward()
            torch.nn.utils.clip_grad_norm_([parameters[name] for name in own], 1.0)
            g = torch.cat([parameters[name].grad.flatten() for name in own])
            local = algorithm.client_step(local, down, g, lr)
        ups.append(algorithm.client_finish(local, down, lr)[0])
    mean = type(ups[0])(*(torch.stack(field).mean(0) for field in zip(*ups, strict=True)))
    after = algorithm.server_update(server, mean, lr, torch.tensor(3 / 5, dtype=torch.float64))
    return {**x, **algorithm.blocks.layout.views(after.x)}, after


@pytest.mark.parametrize("stack", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_halves_train_in_turn_as_plain_loops_do(place, double, stack):
    sim, other = alternate(place, stack=stack), alternate(place)
    x = {name: t.clone() for name, t in sim.workspace.layout.views(sim.state.server.x).items()}
    halves = (other.parts.first, other.parts.second)
    flat = [torch.cat([x[name].flatten() for name in half.workspace.layout.names]) for half in halves]
    servers = [half.algorithm.server_init(y) for half, y in zip(halves, flat, strict=True)]
    other.parts.leave()
    for round_ in range(4):
        algorithm, place_ = halves[round_ % 2].algorithm, round_ % 2
        now = torch.cat([x[name].flatten() for name in algorithm.blocks.layout.names])
        x, servers[place_] = plain_round(other, algorithm, x, servers[place_]._replace(x=now), round_)
        sim.step()
        for name, t in sim.workspace.layout.views(sim.state.server.x).items():
            torch.testing.assert_close(t, x[name], rtol=0, atol=1e-10)
        for ours, theirs in zip((sim.state.server.first, sim.state.server.second), servers, strict=True):
            for field in ("delta", "v", "t"):
                torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), rtol=0, atol=1e-10)


def test_what_rests_neither_moves_nor_decays_nor_is_sent(place):
    sim = alternate(place)
    halves = (sim.parts.first, sim.parts.second)
    d, itemsize, clients = sim.workspace.layout.d, 4, 3
    for round_ in range(4):
        before = sim.state.server
        record = sim.step()
        after, half, resting = sim.state.server, halves[round_ % 2], halves[1 - round_ % 2]
        moved = sim.workspace.layout.views(after.x - before.x)
        assert all(moved[name].any() == (not rests(name, round_)) for name in moved if "lora_" in name)
        assert all(t.any() for name, t in moved.items() if "lora_" not in name), "the head trains in every round"
        own, blocks = half.workspace.layout.d, half.algorithm.blocks.B
        for ours, theirs in zip(before[2 - round_ % 2], after[2 - round_ % 2], strict=True):
            assert torch.equal(ours, theirs)
        assert record.up_bytes == clients * itemsize * (own + blocks + 1)
        assert record.down_bytes == clients * itemsize * (2 * own + blocks + 1 + (d - own))
        assert own < d
        assert resting is not half
    whole = simulation(place, ROUNDS).step()
    assert record.up_bytes < whole.up_bytes
    assert record.down_bytes < whole.down_bytes


def test_its_mean_is_that_of_the_dense_weights(place, double):
    sim = alternate(place, "algorithm=local-adamw")
    for _ in range(3):
        sent: list[torch.Tensor] = []
        sim.listeners[:] = [lambda shard, answer, sent=sent: sent.append(answer.up.delta.clone())]
        half, x = sim.parts.at(sim.state.round), sim.state.server.x.clone()
        sim.step()
        each = []
        for delta in sent:
            sim.parts.leave()
            sim.workspace.load(half.merge(x, half.own(x) + delta), sim.state.statistics)
            each.append(merged_weights(sim.workspace.module))
        sim.load()
        for name, weight in merged_weights(sim.workspace.module).items():
            expected = sum(dense[name] for dense in each) / 3
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "stop"),
    [
        pytest.param((), 3, marks=pytest.mark.slow),
        (("algorithm=scaffold", "training.upload=top-k"), 1),
        pytest.param(("training.outer.lr=0.7",), 3, marks=pytest.mark.slow),
        pytest.param(("algorithm=muloco",), 3, marks=pytest.mark.slow),
    ],
    ids=["fedadamw", "scaffold", "outer", "muloco"],
)
def test_a_stopped_run_goes_on_bit_for_bit(place, given, stop):
    whole, first, second = (alternate(place, *given) for _ in range(3))
    list(whole.rounds())
    for _ in range(stop):
        first.step()
    second.restore(Saved(stop, {name: t.clone() for name, t in first.tensors().items()}))
    assert first.evaluate() == second.evaluate()
    list(second.rounds())
    assert whole.tensors().keys() == second.tensors().keys()
    for name, t in whole.tensors().items():
        assert torch.equal(second.tensors()[name], t), name


def test_diagnostics_which_compare_rounds_are_refused(place):
    with pytest.raises(InputError, match="training.diagnostics compares rounds of one kind: not with alternate"):
        alternate(place, "training.diagnostics=true")


@pytest.mark.slow
def test_with_privacy_of_clients_each_half_has_a_clip_of_its_own(place):
    privacy = "privacy={unit: client, noise_multiplier: 0.1, clip: 0.1, moment_clip: 0.1, quantile: 0.5}"
    given = (ROUNDS, "lora.aggregate=alternate", privacy)
    whole, resumed = resume_after_one_round(place, *given)
    assert whole.state.clips.shape == resumed.state.clips.shape == (2,)
    clips = [record.clip for record in simulation(place, *given).rounds()]
    assert clips[:2] == [0.1, 0.1]
    assert len(set(clips)) == 3
