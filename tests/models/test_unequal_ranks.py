"""lora.ranks: clients with smaller adapters, against models that really have them, with bytes."""

import pytest
import torch
from support.adapters import resume_after_one_round, simulation

from fedadamw.engine.client import plan_work
from fedadamw.prepare import texts
from fedadamw.prepare.adapters import assign_ranks
from fedadamw.settings.load import load
from fedadamw.validation import InputError

RANKS = [1, 2, 4, 2, 4]
LISTED = f"lora.ranks={RANKS}"
SGD = "algorithm={name: fedavg, weight_decay: 0.01}"


def crop(name, t, rank):
    """The first `rank` rows of A or columns of B; other parameters whole."""
    return t[:rank] if "lora_A" in name else t[:, :rank] if "lora_B" in name else t


def pad(name, t, like):
    padded = torch.zeros_like(like)
    crop(name, padded, t.shape[0] if "lora_A" in name else t.shape[-1])[:] = t
    return padded


def small_model(place, rank, aggregate, sim):
    """A model whose adapters have this rank, with the frozen weights and the task's form of `sim`'s."""
    given = [f"model={place / 'roberta'}", "lora.target_modules=[query,key,value,dense]", f"lora.r={rank}"]
    classes = [str(i) for i in range(sim.workspace.module.config.num_labels)]
    facts = {"classes": classes, "edges": None}
    data = ["data.task=text", f"data.source={place / 'reviews.csv'}"]
    experiment = load("digits", [*data, *given, "lora.dropout=0", f"lora.aggregate={aggregate}"])
    model = texts.build_model(experiment, texts_pretrained(experiment), facts).model
    kept = {n: p for n, p in sim.workspace.module.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in kept:
                p.copy_(crop(name, kept[name], rank))
    return model


def texts_pretrained(experiment):
    from fedadamw.prepare.problem import open_pretrained

    return open_pretrained(experiment)


def client_by_hand(sim, place, aggregate, client, x, round_):
    """Train one client with a model of its own rank by plain SGD; return its trained tensors and its products s B A."""
    rank = RANKS[client]
    sim.load()  # the frozen weights as they are now
    model = small_model(place, rank, aggregate, sim).train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == x.keys()
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(crop(name, x[name], rank))
    work = plan_work(sim.task, sim.training, 0, client, sim.clients.partition[client], round_)
    lr = sim.training.lr_at(round_)
    for samples, drawn in work.batches():
        model.zero_grad()
        sim.task.losses(model, sim.task.batch(samples, drawn)).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        with torch.no_grad():
            for p in trained.values():
                p.sub_(lr * (p.grad + 0.01 * p))
    products = {
        n: m.get_delta_weight("default").detach() for n, m in model.named_modules() if hasattr(m, "get_delta_weight")
    }
    return {n: p.detach() for n, p in trained.items()}, products


@pytest.mark.parametrize(
    ("aggregate", "stack"),
    [
        ("factors", 3),
        pytest.param("frozen-a", 1, marks=pytest.mark.slow),
        ("exact", 1),
        pytest.param("residual", 3, marks=pytest.mark.slow),
    ],
)
def test_ranks_are_those_of_models_that_have_them(place, double, aggregate, stack):
    sim = simulation(place, LISTED, SGD, "training.lr=0.5", f"lora.aggregate={aggregate}", stack=stack)
    for round_ in range(2):
        x = {n: t.clone() for n, t in sim.workspace.layout.views(sim.state.server.x).items()}
        sampled = sim.clients.sample(round_)
        done = [client_by_hand(sim, place, aggregate, client, x, round_) for client in sampled]
        sim.load()
        modules = {n: m for n, m in sim.workspace.module.named_modules() if hasattr(m, "get_delta_weight")}
        base = {n: m.get_base_layer().weight.detach().clone() for n, m in modules.items()}
        sim.step()
        sim.load()
        for name, t in sim.workspace.layout.views(sim.state.server.x).items():
            if aggregate == "exact" and "lora_" in name:
                continue
            expected = sum(pad(name, trained[name], t) for trained, _ in done) / 3
            torch.testing.assert_close(t, expected, rtol=0, atol=1e-10)
        if aggregate in ("exact", "residual"):
            for name, module in modules.items():
                expected = base[name] + sum(products[name] for _, products in done) / 3
                found = module.get_base_layer().weight + module.get_delta_weight("default")
                torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-10)


def test_with_exact_means_rows_that_few_clients_have_do_not_vanish(place):
    sim = simulation(place, LISTED, "lora.aggregate=exact")
    before = {n: t.clone() for n, t in sim.workspace.layout.views(sim.state.server.x).items() if "lora_A" in n}
    list(sim.rounds())
    for name, t in sim.workspace.layout.views(sim.state.server.x).items():
        if "lora_A" in name:
            assert t[-1].norm() > 0.8 * before[name][-1].norm()


@pytest.mark.parametrize(
    ("aggregate", "name"),
    [
        ("factors", "fedadamw"),
        pytest.param("exact", "scaffold", marks=pytest.mark.slow),
        pytest.param("residual", "fedmuon", marks=pytest.mark.slow),
    ],
)
def test_stacked_clients_come_to_the_loops_numbers_and_bytes(place, double, aggregate, name):
    given = (LISTED, f"lora.aggregate={aggregate}", f"algorithm={name}", "training.rounds=2")
    loop, stacked = (simulation(place, *given, stack=stack) for stack in (1, 3))
    for ours, theirs in zip(stacked.rounds(), loop.rounds(), strict=True):
        for key, t in loop.state.tensors().items():
            torch.testing.assert_close(stacked.state.tensors()[key], t, rtol=1e-9, atol=1e-9)
        assert (ours.up_bytes, ours.down_bytes) == (theirs.up_bytes, theirs.down_bytes)


@pytest.mark.parametrize("upload", ["float32", "int8", "top-k"])
def test_bytes_are_those_of_each_clients_rank(place, upload):
    sim = simulation(place, LISTED, f"training.upload={upload}", "training.keep=0.1")
    shapes = dict(zip(sim.workspace.layout.names, sim.workspace.layout.shapes, strict=True))
    others = sum(shape.numel() for name, shape in shapes.items() if "lora_" not in name)
    a_row = sum(shape.numel() for name, shape in shapes.items() if "lora_" in name) // 4
    sampled, blocks = sim.clients.sample(0), sim.algorithm.blocks.B
    own = [others + a_row * RANKS[client] for client in sampled]
    record = sim.step()
    sizes = {
        "float32": lambda d: 4 * d,
        "int8": lambda d: d + 4 * -(-d // 2048),
        "top-k": lambda d: 8 * max(round(0.1 * d), 1),
    }
    assert record.up_bytes == sum(sizes[upload](d) + 4 * (blocks + 1) for d in own)
    assert record.down_bytes == sum(4 * (2 * d + blocks + 1) for d in own)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(place):
    given = (LISTED, "lora.aggregate=residual", "training.upload=int8")
    resume_after_one_round(place, *given)


def test_shares_of_clients_are_drawn_from_the_seed():
    ranks = assign_ranks({4: 0.5, 16: 0.3, 64: 0.2}, 20, seed=3)
    assert [ranks.count(rank) for rank in (4, 16, 64)] == [10, 6, 4]
    assert ranks == assign_ranks({64: 0.2, 4: 0.5, 16: 0.3}, 20, seed=3)
    assert ranks != assign_ranks({4: 0.5, 16: 0.3, 64: 0.2}, 20, seed=4)
    thirds = assign_ranks({1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, 10, seed=0)
    assert sorted(thirds.count(rank) for rank in (1, 2, 3)) == [3, 3, 4]


def test_the_largest_rank_is_that_of_the_model():
    assert load("digits", ["lora.ranks={4: 0.5, 8: 0.5}"]).lora.r == 8
    experiment = load("digits", ["lora.ranks=[2, 4]"])
    assert (experiment.lora.r, experiment.lora.ranks) == (4, (2, 4))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["lora.ranks={4: 0.5, 8: 0.4}"], "lora.ranks: the shares add up to 0.9, not 1"),
        (["lora.ranks=[2, 4]"], "lora.ranks lists 2 clients; the partition has 5"),
        (["lora.r=4", "lora.ranks={2: 0.5, 8: 0.5}"], "lora.r=4: the largest of lora.ranks is 8; set lora.r=8"),
        (["lora.ranks=[2, 4, 2, 2, 2]", "lora.rank_pattern={key: 2}"], "give ranks by client or by layer, not both"),
        (["lora.ranks=[2, 4, 2, 2, 2]", "lora.aggregate=alternate"], "lora.aggregate='alternate' has adapters of one"),
        (["lora.ranks={}"], r"lora.ranks=\{\}: give \{RANK: SHARE, ...\}, or the rank of each client in a list"),
        (["lora.ranks=[0, 4]"], r"lora.ranks=\[0, 4\]: a rank is a number from 1, a share one above 0 to 1"),
        (["lora.ranks={2: 0.5, x: 0.5}"], "lora.ranks=.*: a rank is a number from 1"),
        (["lora.ranks=4"], r"lora.ranks=4: give \{RANK: SHARE, ...\}, or the rank of each client in a list"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_line(given, line):
    with pytest.raises(InputError, match=line) as found:
        assign_ranks(load("digits", given).lora.ranks, 5, seed=0)
    assert "\n" not in str(found.value)
