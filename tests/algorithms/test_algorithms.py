"""Properties that every algorithm of the table has."""

import numpy as np
import pytest
import torch
from support.cases import CASES, EVERYWHERE, rows
from support.runs import ROUNDS, gradients_of_round, literal_problem, simulation
from support.sequences import attention_model, batch_of, unequal_clients

from fedadamw.algorithms import fedadam, registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.client import Broadcast
from fedadamw.engine.round import Aggregation, run_round
from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.randomness import Purpose, draw_batches, numpy_generator
from fedadamw.settings.training import TrainingSettings
from fedadamw.vector import Layout, nbytes, trainable


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.usefixtures("all_algorithms")
def test_engine_equals_the_literal_twin(name, task):
    case = EVERYWHERE[name]
    sim = simulation(case, task)
    clients, training = sim.clients.partition, sim.training
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(ROUNDS)]
    assert len({len(steps) for _, c in rounds for steps in c.values()}) > 2, "clients take different numbers of steps"
    x0 = Layout.of(attention_model()).flatten(trainable(attention_model())).tolist()
    expected = case.twin(x0, rounds, literal_problem(attention_model(), len(clients)), **case.settings)
    for record, x in zip(sim.rounds(), expected, strict=True):
        assert record.rejected == 0
        np.testing.assert_allclose(sim.state.server.x.numpy(), x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_the_documented_count(name, task):
    case = CASES[name]
    sim = simulation(case, task)
    d, B = sim.workspace.layout.d, Blocks.of(sim.workspace.module).B  # noqa: N806
    record = sim.step()
    M, T = 12 + 48 + 16 + 32, (4 + 3) + (12 + 4) + (4 + 4) + (8 + 4)  # noqa: N806  (hidden matrices, rows and columns)
    counts = {"d": d, "B": B, "M": M, "T": T}
    assert record.up_bytes == 3 * 8 * eval(case.up, counts)
    assert record.down_bytes == 3 * 8 * eval(case.down, counts)
    assert nbytes(sim.algorithm.broadcast(sim.state.server)) == 8 * eval(case.down, counts)


@pytest.mark.parametrize("name", rows(CASES))
def test_seed_determines_the_numbers(name, task):
    def run(seed):
        sim = simulation(CASES[name], task, seed=seed, rounds=2)
        list(sim.rounds())
        return sim.state.server.x

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize("name", rows(CASES))
def test_order_of_clients_does_not_matter(name, task):
    sim = simulation(CASES[name], task)
    broadcast = Broadcast(0, sim.algorithm.broadcast(sim.state.server), sim.state.statistics, sim.state.base)
    forwards = run_round(sim.clients, [0, 1, 2, 3, 4], broadcast, Aggregation())
    backwards = run_round(sim.clients, [4, 3, 2, 1, 0], broadcast, Aggregation())
    for a, b in zip(forwards.up, backwards.up, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", rows(CASES))
def test_resume_between_rounds_is_bit_identical(name, task):
    whole = simulation(CASES[name], task, rounds=3)
    list(whole.rounds())
    first = simulation(CASES[name], task, rounds=3)
    first.step()
    first.step()
    second = simulation(CASES[name], task, rounds=3)
    second.restore(Saved(first.state.round, first.tensors()))
    list(second.rounds())
    for a, b in zip(second.state.server, whole.state.server, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", CASES)
def test_algorithm_does_not_modify_its_arguments(name):
    case = CASES[name]
    model = attention_model()
    algorithm = registry.make(case.name, registry.validate(case.name, case.settings), Blocks.of(model))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(Layout.of(model).d, generator=g, dtype=torch.float64)
    server = algorithm.server_init(x)
    down = algorithm.broadcast(server)
    copies = [t.clone() for t in down]
    lr = x.new_tensor(0.1)
    local = algorithm.client_start(down, algorithm.client_init(down))
    for _ in range(3):
        gradient = torch.randn(len(x), generator=g, dtype=torch.float64)
        kept = gradient.clone()
        local = algorithm.client_step(local, down, gradient, lr)
        assert torch.equal(gradient, kept)
    up, _ = algorithm.client_finish(local, down, lr)
    after = algorithm.server_update(server, up, lr, x.new_tensor(0.5))
    assert all(torch.equal(a, b) for a, b in zip(down, copies, strict=True))
    assert torch.allclose(after.x, x + up.delta) is algorithm.adds_mean


@pytest.mark.parametrize("name", CASES)
def test_stacked_clients_equal_single_clients(name):
    case = CASES[name]
    model = attention_model()
    algorithm = registry.make(case.name, registry.validate(case.name, case.settings), Blocks.of(model))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(Layout.of(model).d, generator=g, dtype=torch.float64)
    gradients = torch.randn(4, 3, len(x), generator=g, dtype=torch.float64)  # (steps, clients, d)
    down = algorithm.broadcast(algorithm.server_init(x))
    lr = x.new_tensor(0.1)

    def finish(steps):
        local = algorithm.client_start(down, algorithm.client_init(down))
        for gradient in steps:
            local = algorithm.client_step(local, down, gradient, lr)
        return algorithm.client_finish(local, down, lr)[0]

    stacked = finish(gradients)
    for i in range(3):
        alone = finish(gradients[:, i])
        for a, b in zip(stacked, alone, strict=True):
            torch.testing.assert_close(a[i] if a.dim() == 2 else a, b, rtol=0, atol=1e-12)


def test_fedadamw_without_alignment_and_sharing_is_torch_adamw_on_each_client(task):
    model = attention_model()
    settings = registry.validate("fedadamw", {"alpha": 0.0, "share": "none"})
    algorithm = registry.make("fedadamw", settings, Blocks.of(model))
    clients = unequal_clients(task)
    training = TrainingSettings(rounds=2, clients_per_round=5, epochs=1, batch_size=8, lr=0.01, clip=None)
    sim = Simulation.in_process(model, algorithm, task, clients, training)
    x = Layout.of(attention_model()).flatten(trainable(attention_model()))
    for round_ in range(2):
        finals = []
        for i, samples in enumerate(clients):
            own = attention_model()
            layout = Layout.of(own)
            with torch.no_grad():
                for name, p in trainable(own).items():
                    p.copy_(layout.views(x)[name])
            opt = torch.optim.AdamW(own.parameters(), lr=training.lr_at(round_), weight_decay=0.01)
            generator = numpy_generator(0, Purpose.BATCHES, round_, i)
            for indices in draw_batches(samples, generator, batch_size=8, steps=None, epochs=1):
                opt.zero_grad()
                task.losses(own, batch_of(task, indices)).mean().backward()
                opt.step()
            finals.append(layout.flatten(trainable(own)))
        x = torch.stack(finals).mean(0)
        sim.step()
        torch.testing.assert_close(sim.state.server.x, x, rtol=0, atol=1e-12)


def test_fedadamw_without_alignment_and_sharing_is_local_adamw(task):
    ours = simulation(CASES["fedadamw-none"]._replace(settings={"share": "none", "alpha": 0.0}), task)
    local = simulation(CASES["local-adamw"], task)
    list(ours.rounds())
    list(local.rounds())
    assert torch.equal(ours.state.server.x, local.state.server.x)


def ends(name, settings, dtype, rounds=2, steps=250):
    """x (d,) after rounds of one client, by gradients that are the same in every precision; lr is 1e-3."""
    model = attention_model()
    algorithm = registry.make(name, registry.validate(name, settings), Blocks.of(model))
    g = torch.Generator().manual_seed(0)
    gradients = torch.randn(rounds, steps, Layout.of(model).d, generator=g) + 1.0
    server = algorithm.server_init(torch.zeros(Layout.of(model).d, dtype=dtype))
    lr = torch.tensor(1e-3, dtype=dtype)
    for of_round in gradients.to(dtype):
        down = algorithm.broadcast(server)
        local = algorithm.client_start(down, algorithm.client_init(down))
        for gradient in of_round:
            local = algorithm.client_step(local, down, gradient, lr)
        server = algorithm.server_update(server, algorithm.client_finish(local, down, lr)[0], lr, lr.new_tensor(1.0))
    return server.x, gradients


@pytest.mark.parametrize("beta2", [0.9999, 0.99999])
def test_float32_steps_are_as_accurate_as_torch_adamw(beta2):
    settings = {"betas": [0.9, beta2], "weight_decay": 0.01}
    ours, gradients = ends("local-adamw", settings, torch.float32, rounds=1, steps=2000)
    found = {}
    for dtype in (torch.float32, torch.float64):
        p = torch.nn.Parameter(torch.zeros(gradients.shape[-1], dtype=dtype))
        opt = torch.optim.AdamW([p], lr=1e-3, betas=(0.9, beta2), weight_decay=0.01, foreach=False, fused=False)
        for gradient in gradients[0].to(dtype):
            p.grad = gradient
            opt.step()
        found[dtype] = p.detach().double()
    theirs = (found[torch.float32] - found[torch.float64]).abs().max()
    assert (ours.double() - found[torch.float64]).abs().max() < theirs.clamp(min=2e-6)


WITH_SECOND_MOMENT = ("fedadamw-vm", "fedadamw-mean-v", "local-adam", "fedlada", "fedlamb", "fedmuon")


@pytest.mark.parametrize("name", WITH_SECOND_MOMENT)
def test_moments_with_betas_near_1_are_accurate_in_float32(name):
    case = CASES[name]
    settings = {**case.settings, "betas": [0.9, 0.99999]}
    single, double = (ends(case.name, settings, dtype)[0].double() for dtype in (torch.float32, torch.float64))
    assert float((single - double).norm() / double.norm()) < 5e-6


def test_fedadam_server_moments_are_accurate_in_float32():
    algorithm = registry.make(
        "fedadam", registry.validate("fedadam", {"betas": [0.9, 0.99999]}), Blocks.of(attention_model())
    )
    updates = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in (torch.float32, torch.float64):
        server, one = algorithm.server_init(torch.zeros(8, dtype=dtype)), torch.ones((), dtype=dtype)
        for update in updates.to(dtype):
            server = algorithm.server_update(server, fedadam.Up(update), one, one)
        found.append(server.v.double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "settings", "like"),
    [
        ("fedprox", {"mu": 0.0}, "fedavg"),
        ("fedcm", {"a": 1.0}, "fedavg"),
        ("fedlamb", {"trust": [1.0, 1.0], "eps": 1e-8}, "fedadamw-mean-v"),
    ],
)
def test_limiting_settings_give_another_algorithm(name, settings, like, task):
    limit = simulation(CASES[name]._replace(settings=settings, lr=CASES[like].lr), task)
    other = simulation(CASES[like], task)
    list(limit.rounds())
    list(other.rounds())
    torch.testing.assert_close(limit.state.server.x, other.state.server.x, rtol=0, atol=1e-12)


def test_scaffold_equals_fedavg_in_the_first_round_only(task):
    scaffold, fedavg = simulation(CASES["scaffold"], task), simulation(CASES["fedavg"], task)
    scaffold.step()
    fedavg.step()
    torch.testing.assert_close(scaffold.state.server.x, fedavg.state.server.x, rtol=0, atol=1e-12)
    scaffold.step()
    fedavg.step()
    assert float((scaffold.state.server.x - fedavg.state.server.x).abs().max()) > 1e-4


def test_fadamgc_is_local_adamw_in_the_first_round_only(task):
    corrected, local = simulation(CASES["fadamgc"], task), simulation(CASES["local-adamw"], task)
    corrected.step()
    local.step()
    assert torch.equal(corrected.state.server.x, local.state.server.x)
    corrected.step()
    local.step()
    assert float((corrected.state.server.x - local.state.server.x).abs().max()) > 1e-4


def test_fedexp_of_clients_that_agree_is_the_mean_of_fedavgs_last_two_models(task):
    limit, fedavg = (
        simulation(CASES["fedexp"]._replace(settings={"eps": 1e9}), task),
        simulation(CASES["fedavg"], task),
    )
    models = [fedavg.state.server.x]
    for _ in range(ROUNDS):
        limit.step()
        fedavg.step()
        models.append(fedavg.state.server.x)
    torch.testing.assert_close(limit.state.server.x, (models[-1] + models[-2]) / 2, rtol=0, atol=1e-12)
    evaluated = limit.workspace.layout.flatten(trainable(limit.workspace.module))
    limit.load()
    assert torch.equal(evaluated, limit.state.server.x), "what is evaluated is the mean"


def test_fedexp_goes_further_where_clients_disagree(task):
    sim, fedavg = simulation(CASES["fedexp"]._replace(settings={"eps": 1e-9}), task), simulation(CASES["fedavg"], task)
    start = sim.state.server.x
    sim.step()
    fedavg.step()
    step, mean = 2 * (sim.state.server.x - start), fedavg.state.server.x - start
    eta = step.norm() / mean.norm()
    assert float(eta) > 1.1
    torch.testing.assert_close(step, eta * mean, rtol=0, atol=1e-12)


def test_scaffold_control_variate_is_the_mean_over_all_clients(task):
    sim = simulation(CASES["scaffold"], task)
    list(sim.rounds())
    memories = [sim.clients.store.get(i, ROUNDS) for i in range(len(sim.clients))]
    own = torch.stack([memory.c for memory in memories if memory is not None])
    torch.testing.assert_close(sim.state.server.c, own.sum(0) / len(sim.clients), rtol=0, atol=1e-12)


def test_one_client_with_every_sample_is_central_training(task):
    everything = [np.arange(len(task.labels))]
    sim = simulation(
        CASES["fedavg"]._replace(settings={"weight_decay": 0.0}),
        task,
        clients=everything,
        clients_per_round=1,
        steps=4,
        epochs=None,
        batch_size=200,
        schedule="constant",
    )
    list(sim.rounds())
    model = attention_model()
    opt = torch.optim.SGD(model.parameters(), lr=CASES["fedavg"].lr)
    for _ in range(ROUNDS * 4):
        opt.zero_grad()
        task.losses(model, (task.inputs, task.labels)).mean().backward()
        opt.step()
    expected = Layout.of(model).flatten(trainable(model))
    torch.testing.assert_close(sim.state.server.x, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fedadamw", {"share": "vv"}, "share='vv' is unknown.*use one of none, m, v, vm, mean-v"),
        ("fedadamw", {"alhpa": 1}, "alhpa is unknown.*did you mean 'alpha'"),
        ("fedadamw", {"alpha": -1}, "alpha=-1.0 must not be negative"),
        ("fedadamw", {"betas": [0.9, 1.0]}, "betas=.* must lie in"),
        ("fedadamw", {"eps": "small"}, "eps='small'"),
        *(
            (name, {"eps": 0}, "eps=0.0 must be at least 1.18e-38")
            for name in ("fedadamw", "local-adam", "local-adamw")
        ),
        *((name, {"eps": 1e-50}, "eps=1e-50 must be at least") for name in ("fedlada", "fedlamb", "fedmuon")),
        ("fedadam", {"tau": 0}, "tau=0.0 must be at least"),
        ("fedavg", {"alpha": 0.5}, "alpha is unknown.*fedavg has weight_decay"),
        ("fedadam-w", {}, "'fedadam-w' is unknown.*did you mean 'fedadamw'"),
    ],
)
def test_invalid_setting_is_reported_in_one_line(name, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        registry.check_startable({"name": name, **registry.validate(name, given)})
    assert "\n" not in str(caught.value)
