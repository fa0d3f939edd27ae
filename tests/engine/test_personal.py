"""Personal parameters: each client keeps its own, as a federation of one."""

from itertools import product

import numpy as np
import pytest
import torch
from support.cases import CASES, EVERYWHERE
from support.personal import OWN, few, own_numbers, personal_simulation, places_of
from support.personal_twin import run_with_personal
from support.runs import ROUNDS, gradients_of_round, literal_problem, simulation
from support.sequences import attention_model

from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.simulate import Saved
from fedadamw.vector import Layout, trainable


@pytest.mark.parametrize("name", few(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_each_client_keeps_its_own_numbers_as_in_the_literal_twin(name, task):
    case = EVERYWHERE[name]
    sim = personal_simulation(case, task)
    clients, training = sim.clients.partition, sim.training
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(ROUNDS)]
    x0 = Layout.of(attention_model()).flatten(trainable(attention_model())).tolist()
    problem = literal_problem(attention_model(), len(clients))
    expected = run_with_personal(case.twin, x0, rounds, problem, places_of(attention_model()), case.settings)
    count = dict.fromkeys(range(len(clients)), 0)
    for number, record in enumerate(sim.rounds()):
        assert record.rejected == 0
        np.testing.assert_allclose(sim.state.server.x.numpy(), expected.shared[number], rtol=0, atol=1e-10)
        for client in rounds[number][1]:
            own = expected.own[client][count[client]]
            np.testing.assert_allclose(own_numbers(sim, client).numpy(), own, rtol=0, atol=1e-10)
            count[client] += 1
    assert max(count.values()) > 1, "a client goes on with what it kept"


@pytest.mark.parametrize("name", few(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_stacked_clients_match_the_loop(name, task):
    how = {"clients_per_round": 4, "clip": 1.0, "rounds": 3}
    loop = personal_simulation(EVERYWHERE[name], task, **how)
    stacked = personal_simulation(EVERYWHERE[name], task, **how, stack=3)
    for ours, theirs in zip(stacked.rounds(), loop.rounds(), strict=True):
        torch.testing.assert_close(stacked.tensors(), loop.tensors(), rtol=1e-10, atol=1e-10)
        assert (ours.clients, ours.up_bytes, ours.down_bytes) == (theirs.clients, theirs.up_bytes, theirs.down_bytes)


@pytest.mark.parametrize("name", few(CASES))
def test_only_shared_numbers_travel(name, task):
    case = CASES[name]
    sim = personal_simulation(case, task)
    record = sim.step()
    model = attention_model()
    d = Layout.of(model).d - len(places_of(model))
    of_own = Blocks.of(torch.nn.ModuleDict({"mlp": model.mlp, "classifier": model.classifier})).B
    B = Blocks.of(model).B - of_own  # noqa: N806
    M, T = 12 + 48 + 16, (4 + 3) + (12 + 4) + (4 + 4)  # noqa: N806  (as in test_algorithms, without mlp)
    counts = {"d": d, "B": B, "M": M, "T": T}
    assert record.up_bytes == 3 * 8 * eval(case.up, counts)
    assert record.down_bytes == 3 * 8 * eval(case.down, counts)
    assert record.test_loss is None, "there is no global model"


KINDS = ("float32", "int8"), (False, True)  # of uploads; whether memories are on disk
WITH_THE_WHOLE = {"fedadamw-agreement", "fedadamw-bounded", "fedexp"}  # their step depends on the norm of all numbers


@pytest.mark.parametrize("name", few([name for name in EVERYWHERE if name not in WITH_THE_WHOLE]))
@pytest.mark.usefixtures("all_algorithms")
def test_one_client_alone_is_the_plain_run(name, task):
    clients = [np.arange(60)]
    plain = simulation(EVERYWHERE[name], task, clients=clients, clients_per_round=1, clip=1.0)
    own = personal_simulation(EVERYWHERE[name], task, clients=clients, clients_per_round=1, clip=1.0)
    places = places_of(attention_model())
    for _ in zip(plain.rounds(), own.rounds(), strict=True):
        x = plain.state.server.x
        others = torch.tensor([i for i in range(len(x)) if i not in set(places)])
        torch.testing.assert_close(own.state.server.x, x[others], rtol=0, atol=1e-10)
        torch.testing.assert_close(own_numbers(own, 0), x[places], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "upload", "on_disk"),
    [
        ("scaffold", "int8", True),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in product(("fedadamw-mean-v", "fedadamw-outer"), *KINDS)),
    ],
)
@pytest.mark.usefixtures("all_algorithms")
def test_a_resumed_run_has_the_same_bits(name, upload, on_disk, task, tmp_path):
    def start(folder, saved=None):
        where = tmp_path / folder if on_disk else None
        return personal_simulation(EVERYWHERE[name], task, upload=upload, memory_folder=where, saved=saved)

    whole = start("whole")
    list(whole.rounds())
    first = start("stopped")
    first.step()
    first.step()
    second = start("stopped", Saved(first.state.round, first.tensors()))
    list(second.rounds())
    for key, t in whole.tensors().items():
        assert torch.equal(second.tensors()[key], t), key
    for client in range(5):
        for a, b in zip(*(sim.clients.store.get(client, ROUNDS) for sim in (whole, second)), strict=True):
            assert torch.equal(a, b)


def test_steps_of_other_kinds_are_the_same(task):
    case = CASES["fedadamw-mean-v"]
    fused, plain = (personal_simulation(case, task, clip=1.0, step=kind) for kind in ("fused", "plain"))
    for _ in zip(fused.rounds(), plain.rounds(), strict=True):
        torch.testing.assert_close(fused.tensors(), plain.tensors(), rtol=1e-10, atol=1e-10)


def test_the_contracts_own_step_is_the_engines(task):
    case = CASES["fedadamw-mean-v"]
    sim = personal_simulation(case, task, clip=None)
    algorithm, x = sim.algorithm, sim.state.server.x
    down = algorithm.broadcast(sim.state.server)
    local = algorithm.client_start(down, algorithm.client_init(down))
    g, lr = torch.randn(local.y.shape, dtype=torch.float64), x.new_tensor(0.1)
    after = algorithm.client_step(local, down, g.clone(), lr)
    moved = algorithm.client_start(down, algorithm.client_init(down))._replace(y=local.y.clone())
    sim.clients.engine.step(moved, down, g.clone(), lr)
    torch.testing.assert_close(moved.y, after.y, rtol=0, atol=1e-12)


def test_personal_names(task):
    sim = personal_simulation(CASES["fedavg"], task)
    names = sim.workspace.layout.names
    assert names[-4:] == ("mlp.weight", "mlp.bias", "classifier.weight", "classifier.bias")
    assert set(names) == set(Layout.of(attention_model()).names)
    assert OWN == ("mlp.*", "classifier.*")
