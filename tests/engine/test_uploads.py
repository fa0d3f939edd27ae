"""Encoded uploads in whole rounds: engines agree, residuals, bytes, convergence."""

import numpy as np
import pytest
import torch
from support.cases import CASES, fast_first
from support.engine import PoisonedTask
from support.runs import NO_BASE, simulation
from support.sequences import attention_model, unequal_clients

from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.engine.client import Broadcast, Shard
from fedadamw.engine.codecs import BFloat16, Int8, Plain, TopK
from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.engine.uploads import CodedEngine, Uploads
from fedadamw.randomness import Purpose, torch_generator
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Evaluation
from fedadamw.validation import InputError
from fedadamw.vector import nbytes

LOSSY = ("bfloat16", "int8", "top-k")
NAMES = ("fedadamw-mean-v", "fedadamw-vm", "scaffold", "fedlada")  # no memory, states, a memory, a state


def coded(name, upload, task, **changes):
    settings = {"clients_per_round": 5, "clip": 1.0, "upload": upload, "keep": 0.1}
    return simulation(CASES[name], task, **{**settings, **changes})


@pytest.mark.parametrize("upload", LOSSY)
@pytest.mark.parametrize("name", fast_first(NAMES, set(CASES) - set(NAMES)))
def test_stacked_clients_match_the_loop(name, upload, task):
    loop, stacked = (coded(name, upload, task, rounds=2, stack=stack) for stack in (1, 3))
    exact = coded(name, "float32", task, rounds=2)
    for ours, theirs, plain in zip(stacked.rounds(), loop.rounds(), exact.rounds(), strict=True):
        assert ours.rejected == 0
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-10)
        assert ours.up_bytes == theirs.up_bytes < plain.up_bytes
    for key, t in loop.tensors().items():
        assert torch.isfinite(t).all()
        torch.testing.assert_close(stacked.tensors()[key], t, rtol=1e-10, atol=1e-10)
    assert not torch.equal(loop.state.server.x, exact.state.server.x)


@pytest.mark.parametrize("upload", LOSSY)
@pytest.mark.parametrize("name", NAMES)
def test_resume_between_rounds_is_bit_identical(name, upload, task, tmp_path):
    def run(folder, saved=None):
        memory_folder = None if folder is None else tmp_path / folder
        return coded(name, upload, task, clients_per_round=3, memory_folder=memory_folder, saved=saved)

    whole = run(None)
    list(whole.rounds())
    for folder in (None, "kept"):
        first = run(folder)
        first.step()
        first.step()
        tensors = first.tensors()
        second = run(folder, Saved(2, tensors))
        list(second.rounds())
        for a, b in zip(second.state.server, whole.state.server, strict=True):
            assert torch.equal(a, b)
        if upload != "bfloat16":  # which keeps no residual
            assert any(whole.clients.store.get(client, 5) is not None for client in range(5))
        for client in range(5):
            kept, expected = second.clients.store.get(client, 5), whole.clients.store.get(client, 5)
            assert (kept is None) == (expected is None)
            assert kept is None or all(torch.equal(a, b) for a, b in zip(kept, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_residuals_are_stored_beside_the_algorithms_memory(name, task):
    sim = coded(name, "top-k", task)
    sim.step()
    own = {"scaffold": ("c", "residual_delta", "residual_dc")}
    assert sim.clients.store.get(0, 1)._fields == own.get(name, ("residual_delta",))
    for upload in ("float32", "bfloat16"):
        plain = coded(name, upload, task)
        plain.step()
        assert getattr(plain.clients.store.get(0, 1), "_fields", ()) == own.get(name, ())[:1]


@pytest.mark.parametrize("upload", ["int8", "top-k"])
def test_sent_updates_plus_residual_equal_exact_updates(upload, task):
    """Over three rounds from the same model: the decoded changes and the last residual are the exact changes."""
    exact, lossy = coded("scaffold", "float32", task), coded("scaffold", upload, task)
    down, memory, kept = exact.state.server, None, None
    said, arrived = [torch.zeros_like(down.x)] * 2, [torch.zeros_like(down.x)] * 2
    engine = CodedEngine(lossy.clients.engine, lossy.clients.uploads, 0)
    for round_ in range(3):
        plain = exact.clients.engine.train_client(
            Shard(1, exact.clients.partition[1], memory), Broadcast(round_, down, exact.state.statistics, NO_BASE)
        )
        ((_, answer),) = engine.train(
            [Shard(1, exact.clients.partition[1], kept)], Broadcast(round_, down, exact.state.statistics, NO_BASE)
        )
        memory, kept = plain.memory, answer.memory
        assert torch.equal(kept.c, memory.c), "what is lost on the way is not lost on the client"
        said = [a + b for a, b in zip(said, plain.up, strict=True)]
        arrived = [a + b for a, b in zip(arrived, answer.up, strict=True)]
    for total, sent, rest in zip(said, arrived, kept[1:], strict=True):
        assert not torch.equal(total, sent)
        torch.testing.assert_close(sent + rest, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("upload", ["float32", *LOSSY])
@pytest.mark.parametrize("name", CASES)
def test_the_server_decodes_the_payload_to_what_the_engine_averages(name, upload, task):
    sim = coded(name, upload, task)
    down = sim.algorithm.broadcast(sim.state.server)
    like = sim.clients.uploads.template(down)
    shards = [Shard(i, sim.clients.partition[i], None) for i in range(2)]
    for _, answer in CodedEngine(sim.clients.engine, sim.clients.uploads, 0).train(
        shards, Broadcast(0, down, sim.state.statistics, NO_BASE)
    ):
        arrays = {n: t.numpy() for n, t in answer.payload.items()}
        found = sim.clients.uploads.decode({n: torch.from_numpy(a) for n, a in arrays.items()}, like)
        assert type(found) is type(answer.up)
        assert all(torch.equal(a, b) for a, b in zip(found, answer.up, strict=True))
        assert nbytes(answer.travels) == sum(a.nbytes for a in arrays.values())


@pytest.mark.parametrize("upload", ["float32", *LOSSY])
def test_second_moments_stay_positive_and_close(upload, task):
    sim = coded("fedlada", upload, task)
    down = sim.algorithm.broadcast(sim.state.server)
    plain = sim.clients.engine.train_client(
        Shard(1, sim.clients.partition[1], None), Broadcast(0, down, sim.state.statistics, NO_BASE)
    ).up.v
    assert float(plain.min()) < 1e-6 * float(plain.max()), "which one scale for all would round to 0"
    shard = Shard(1, sim.clients.partition[1], None)
    ((_, answer),) = CodedEngine(sim.clients.engine, sim.clients.uploads, 0).train(
        [shard], Broadcast(0, down, sim.state.statistics, NO_BASE)
    )
    torch.testing.assert_close(answer.up.v, plain, rtol=1 / 256, atol=0)
    assert bool((answer.up.v[plain > 0] > 0).all())


def test_codec_of_each_field(task):
    sim = coded("fedadamw-vm", "int8", task)
    like = sim.clients.uploads.template(sim.state.server)
    assert [sim.clients.uploads._codec(like, name) for name in like._fields] == [
        Int8(),
        BFloat16(),
        BFloat16(),
        Plain(),
    ]
    sim = coded("fedadamw-mean-v", "top-k", task)
    like = sim.clients.uploads.template(sim.state.server)
    assert [sim.clients.uploads._codec(like, name) for name in like._fields] == [TopK(0.1), Plain(), Plain(), Plain()]


@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_names_its_changes(name, task):
    sim = coded(name, "float32", task)
    like = sim.clients.uploads.template(sim.algorithm.broadcast(sim.state.server))
    for change in sim.algorithm.changes:
        assert getattr(like, change).shape == sim.workspace.y.shape


def test_bytes_are_counted_from_what_travels(task):
    d, k = 163, 16
    sizes = {}
    for upload in ("float32", *LOSSY):
        record = coded("fedadamw-mean-v", upload, task).step()
        sizes[upload] = record.up_bytes / 5 - 8 * (coded("fedadamw-mean-v", upload, task).algorithm.blocks.B + 1)
    assert sizes == {"float32": 8 * d, "bfloat16": 2 * d, "int8": d + 4, "top-k": (8 + 4) * k}


def test_int8_costs_a_quarter_of_float32(task):
    """FedAdamW whole, with its block means and scales, in float32."""
    from fedadamw.prepare.simulation import prepare
    from fedadamw.settings.load import load

    sent = {}
    for upload in ("float32", "int8"):
        given = (f"training.upload={upload}", "training.rounds=1", "training.steps=1", "device=cpu")
        sent[upload] = prepare(load("digits", given)).simulation().step().up_bytes
    assert sent["int8"] <= 0.27 * sent["float32"]


def test_a_client_with_non_finite_numbers_is_rejected_and_keeps_its_residual():
    task = PoisonedTask()
    clients = unequal_clients(task)
    training = TrainingSettings(rounds=3, clients_per_round=5, steps=4, batch_size=8, lr=0.05, upload="int8")
    sim = Simulation.in_process(attention_model(), FedAvg(), task, clients, training)
    sim.step()
    before = sim.clients.store.get(0, 1)
    task.poison = frozenset(clients[0].tolist())
    record = sim.step()
    assert (record.clients, record.rejected) == (4, 1)
    assert torch.equal(sim.clients.store.get(0, 2).residual_delta, before.residual_delta)
    assert not torch.equal(sim.clients.store.get(1, 2).residual_delta, sim.clients.store.get(1, 1).residual_delta)
    assert record.up_bytes == 4 * (sim.workspace.layout.d + 4)


def good(task):
    sim = coded("fedlada", "top-k", task)
    like = sim.clients.uploads.template(sim.state.server)
    coding = sim.clients.uploads.encode(like, sim.clients.uploads.zero_residual(sim.state.server.x), torch.Generator())
    return sim.clients.uploads, dict(coding.payload), like


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"delta": None}, "the upload has no delta"),
        ({"delta.places": None}, r"the upload has no delta\.places"),
        ({"extra": torch.zeros(1)}, "the upload has 'extra', which is none of delta, delta.places, v, k"),
        ({"k": torch.zeros(2, dtype=torch.float64)}, r"the upload's k: has shape \(2,\)"),
        ({"k": torch.full((1,), torch.inf, dtype=torch.float64)}, "the upload's k: has a number that is not finite"),
        ({"v": torch.full((163,), 0x7F80, dtype=torch.int16)}, "the upload's v: has a number that is not finite"),
        (
            {"delta.places": torch.zeros(16, dtype=torch.int32)},
            "the upload's delta: has indices that are not in rising order",
        ),
        ({"delta": torch.full((16,), torch.nan, dtype=torch.float64)}, "the upload's delta: has a number that is not"),
    ],
)
def test_invalid_payloads_are_refused_in_one_line(change, complaint, task):
    uploads, payload, like = good(task)
    uploads.decode(payload, like)
    payload = {n: t for n, t in {**payload, **change}.items() if t is not None}
    with pytest.raises(InputError, match=complaint) as caught:
        uploads.decode(payload, like)
    assert "\n" not in str(caught.value)


def test_scales_that_overflow_are_refused(task):
    sim = coded("fedavg", "int8", task)
    like = sim.clients.uploads.template(sim.state.server)._replace(delta=torch.zeros(163))
    scales = torch.full((1,), 3e38)
    with pytest.raises(InputError, match="the upload's delta: has a number that is not finite"):
        sim.clients.uploads.decode({"delta": torch.full((163,), 127, dtype=torch.int8), "delta.scales": scales}, like)


class OpposedTask:
    """Two clients that pull one coordinate far to either side, and want the same of the others."""

    centers = torch.tensor([[10.0, 1.0, 1.0], [-10.0, 1.0, 1.0]], dtype=torch.float64)
    optimum = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    lengths, held_out, resident = None, 1, True

    def draw(self, count, generator):
        return torch.zeros(count, 0)

    def batch(self, samples, drawn):
        return (self.centers[samples],)

    def losses(self, model, batch):
        return 0.5 * (model.weight - batch[0]).square().sum(-1)

    def outputs(self, model, start, stop):
        return (model.weight - self.optimum).abs().max().view(1, 1)

    def score(self, outputs):
        return Evaluation(float(outputs), {})


class Forgetful(TopK):
    """top-k whose clients throw away what they did not send."""

    feedback = False


@pytest.mark.parametrize(("codec", "feedback"), [(TopK(0.3), True), (Forgetful(0.3), False)])
def test_top_k_stalls_without_feedback_and_converges_with_it(codec, feedback):
    model = torch.nn.Linear(3, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    training = TrainingSettings(rounds=1000, clients_per_round=2, steps=1, lr=0.1, clip=None, evaluate_every=1000)
    sim = Simulation.in_process(
        model, FedAvg(weight_decay=0.0), OpposedTask(), [np.array([0]), np.array([1])], training
    )
    sim.clients.uploads = Uploads(sim.algorithm, codec)
    sim.clients.store.template = sim.clients.uploads.initial_memory(sim.state.server)
    distance = list(sim.rounds())[-1].test_loss
    assert codec.count(3) == 1
    if feedback:
        assert distance < 0.01
    else:
        assert distance == 1.0, "both send what cancels, and never what they agree on"


def test_rounding_draws_depend_on_seed_round_and_client_alone(task):
    sim = coded("fedavg", "int8", task)
    down, statistics = sim.state.server, sim.state.statistics

    def payload(client, round_, seed=0, others=()):
        engine = CodedEngine(sim.clients.engine, sim.clients.uploads, seed)
        shards = [Shard(i, sim.clients.partition[i], None) for i in (*others, client)]
        return list(engine.train(shards, Broadcast(round_, down, statistics, NO_BASE)))[-1][1].payload["delta"]

    assert torch.equal(payload(1, 0), payload(1, 0, others=(0, 4)))
    plain = sim.clients.engine.train_client(
        Shard(1, sim.clients.partition[1], None), Broadcast(0, down, statistics, NO_BASE)
    ).up
    generator = torch_generator(0, Purpose.CODEC, 0, 1, device=torch.device("cpu"))
    alone = sim.clients.uploads.encode(plain, sim.clients.uploads.zero_residual(down.x), generator).payload["delta"]
    assert torch.equal(payload(1, 0), alone)
    assert not torch.equal(payload(1, 0), payload(1, 0, seed=1))


@pytest.mark.parametrize("upload", LOSSY)
def test_q_is_never_rounded(upload, task):
    """Also of a model that is not much longer than it."""
    sim = coded("fedadamw-vm", upload, task, unequal_steps=True)
    uploads, algorithm = sim.clients.uploads, sim.algorithm
    down = algorithm.broadcast(algorithm.server_init(torch.zeros(3, dtype=torch.float64)))
    short = algorithm.client_finish(algorithm.client_start(down, ()), down, torch.tensor(0.1))[0]
    q = torch.tensor([0.123456789, 0.987654321], dtype=torch.float64)
    sent = uploads.encode(short._replace(q=q), uploads.zero_residual(down.x), torch.Generator())
    assert torch.equal(sent.payload["q"], q)
    assert torch.equal(uploads.decode(sent.payload, short).q, q)
