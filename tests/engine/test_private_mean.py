"""Privacy of clients: what one changes in a noisy sum, the noise, what comes back, and whole runs."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cases import CASES, EVERYWHERE
from support.checkout import ROOT
from support.client_privacy import NONE, STEPS, privacy, private_simulation
from support.engine import PoisonedTask
from support.personal import own_numbers, personal_simulation
from support.private_ranks import NAMES, STACKS, of_few_clients
from support.runs import simulation
from support.sequences import attention_model

from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.checkpoint import read
from fedadamw.engine.private_mean import COUNTER, OTHERS, ClientPrivacy, PrivateMean, new_private_mean
from fedadamw.engine.simulate import ONLY_NOISE
from fedadamw.engine.state import Saved
from fedadamw.randomness import OperatingSystem, Seeded, sample_independently

BLOCKS = Blocks.of(attention_model())
PARTS = {  # clipped parts besides the update: second moments, moments, control variates, squares, sketches
    "fedavg": 0,
    "fedadamw-mean-v": 1,
    "fedadamw-vm": 2,
    "fedadamw-agreement": 2,
    "scaffold": 1,
    "fedexp": 1,
    "fedmuon-rank": 1,
}
# those whose second moments come back as the squares of mean roots
WITH_ROOTS = {
    "fedadamw-v",
    "fedadamw-vm",
    "fedadamw-mean-v",
    "fedadamw-memory-1",
    "fedadamw-memory-2.5",
    "fedadamw-agreement",
    "fedadamw-cautious",
    "fedadamw-bounded",
    "fedadamw-outer",
    "fedexp",
    "fedlada",
    "fedlamb",
}


def few(names):
    """Rows of a table: the others than FedAdamW and SCAFFOLD are left to `make test-all`."""
    fast = ("fedadamw-mean-v", "scaffold")
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in names]


def algorithm_of(name):
    case = EVERYWHERE[name]
    return registry.make(case.name, registry.validate(case.name, case.settings), BLOCKS)


def empty_mean(name, client_privacy, round_=0):
    """The empty mean of a round of the small transformer, in float64."""
    algorithm = algorithm_of(name)
    down = algorithm.broadcast(algorithm.server_init(torch.zeros(BLOCKS.d, dtype=torch.float64)))
    clips = client_privacy.first_clips(down.x, 1)
    sent = type("Sent", (), {"down": down, "round": round_})
    return new_private_mean(client_privacy, algorithm, sent, clips)


def upload(mean, seed, scale=1.0):
    """An upload of one client: numbers of any size, second moments and counts not negative."""
    g = torch.Generator().manual_seed(seed)
    fields = []
    for t in mean.sums:
        powers = 10.0 ** torch.randint(-3, 4, t.shape, generator=g)
        fields.append(scale * powers * torch.randn(t.shape, generator=g, dtype=t.dtype))
    up = mean.up_type(*fields)
    positive = {name: getattr(up, name).abs() for name in up._fields if name in ("v", "square", COUNTER)}
    return up._replace(**positive)


def distance(with_client, without):
    """What one client changes, in units of the noise of each part, over all parts together."""
    squares = 0.0
    pairs = zip(with_client.fields, with_client.sums, without.sums, strict=True)
    for field, ours, theirs in pairs:
        if field.constant is None and ours.numel():
            squares += float(((ours - theirs) / field.noise).square().sum())
    if with_client.privacy.quantile is not None:
        moved = float(with_client.bits - without.bits)
        squares += (moved / (OTHERS * with_client.z_delta / 2)) ** 2
    return math.sqrt(squares)


@pytest.mark.parametrize("name", PARTS)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 1e6, 1e18]),
    z=st.sampled_from([0.3, 1.0, 4.0]),
    quantile=st.sampled_from([None, 0.5]),
    others=st.integers(0, 3),
)
@settings(max_examples=10)
def test_one_client_changes_all_sums_together_by_one_over_z(name, seed, scale, z, quantile, others):
    of = ClientPrivacy(z, 0.7, 2.0, 10, 4, Seeded(0), quantile=quantile)
    ours, theirs = empty_mean(name, of), empty_mean(name, of)
    for i in range(others):
        for mean in (ours, theirs):
            mean.add(upload(mean, seed + 1 + i), 1.0)
    ours.add(upload(ours, seed, scale), 1.0)
    assert distance(ours, theirs) <= (1 + 1e-6) / z


@pytest.mark.parametrize("name", PARTS)
def test_a_client_with_long_fields_changes_them_by_no_less(name):
    of = ClientPrivacy(1.5, 0.7, 2.0, 10, 4, Seeded(0), quantile=0.5)
    ours, theirs = empty_mean(name, of), empty_mean(name, of)
    ours.add(upload(ours, 0, 1e6), 1.0)
    assert distance(ours, theirs) == pytest.approx(1 / 1.5, rel=1e-6)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("quantile", [None, 0.5])
def test_noise_multipliers_of_the_parts_make_one(name, quantile):
    mean = empty_mean(name, replace(NONE, noise_multiplier=2.0, quantile=quantile))
    others = PARTS[name] + (quantile is not None)
    assert mean.z_delta == pytest.approx(2.0 * math.sqrt(1 + others / 25))
    assert 1 / mean.z_delta**2 + others / (5 * mean.z_delta) ** 2 == pytest.approx(1 / 4)


def test_second_moments_cost_the_update_two_percent_of_noise():
    assert empty_mean("fedadamw-mean-v", replace(NONE, noise_multiplier=1.0)).z_delta == pytest.approx(1.02, abs=2e-3)


@pytest.mark.parametrize("entropy", [Seeded(3), OperatingSystem()])
def test_the_noise_has_the_standard_deviation_that_it_should(entropy):
    of = ClientPrivacy(1.5, 0.4, 3.0, 20, 4, entropy)
    algorithm = algorithm_of("scaffold")
    zero = torch.zeros(1_000_000)
    up = algorithm.client_finish(
        algorithm.client_start(algorithm.server_init(zero), algorithm.client_init(algorithm.server_init(zero))),
        algorithm.server_init(zero),
        torch.tensor(0.1),
    )[0]
    delta, dc = PrivateMean(of, algorithm, up, 0, zero[:0]).result()
    z = 1.5 * math.sqrt(1 + 1 / 25)
    assert float(delta.std()) == pytest.approx(z * 0.4 / 20, rel=0.01)
    assert float(dc.std()) == pytest.approx(5 * z * 3.0 / 20, rel=0.01)
    assert abs(float(delta.mean())) < 4 * z * 0.4 / 20 / 1000
    assert abs(float(torch.corrcoef(torch.stack([delta, dc]))[0, 1])) < 0.005


def test_second_moments_come_back_as_squares_of_mean_roots():
    mean = empty_mean("fedadamw-mean-v", replace(NONE, clients=3))
    ups = [upload(mean, seed) for seed in range(3)]
    for up in ups:
        mean.add(up, 1.0)
    after = mean.up_type(*mean.result())
    torch.testing.assert_close(after.delta, torch.stack([up.delta for up in ups]).mean(0), rtol=1e-10, atol=1e-10)
    roots = torch.stack([up.v.sqrt() for up in ups]).mean(0)
    torch.testing.assert_close(after.v, roots.square(), rtol=1e-10, atol=0)
    assert after.k.tolist() == [4.0], "the counter is that of the settings, not of uploads"


def test_blocks_are_clipped_by_the_roots_of_sums_over_their_coordinates():
    mean = empty_mean("fedadamw-mean-v", replace(NONE, moment_clip=2.0, clients=1))
    v = torch.rand(BLOCKS.d, dtype=torch.float64)
    blocks = BLOCKS.mean(v)
    mean.add(upload(mean, 0)._replace(v=blocks), 1.0)
    sizes = torch.tensor(BLOCKS.sizes, dtype=torch.float64)
    assert float((sizes * blocks).sum()) == pytest.approx(float(v.sum()))
    scale = 4.0 / float(v.sum())  # of v; its root has norm 2 then
    torch.testing.assert_close(mean.up_type(*mean.result()).v, scale * blocks, rtol=1e-10, atol=0)


def test_the_estimate_of_second_moments_has_no_bias_before_the_floor():
    root, n, noise = 0.3, 400_000, 0.5
    mean = empty_mean("fedadamw-v", replace(NONE, clients=10))
    field = mean.fields[2]._replace(noise=10 * noise)
    drawn = root + noise * torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimates = field.decode(drawn, 10, floor=-1e9)
    assert float(estimates.mean()) == pytest.approx(root**2, abs=3 * float(estimates.std()) / math.sqrt(n))
    assert float(field.decode(drawn, 10, floor=0.01).min()) == pytest.approx(0.01 * noise**2)


def test_the_clip_follows_a_quantile_of_the_updates_lengths():
    g = torch.Generator().manual_seed(0)
    of = ClientPrivacy(0.5, 0.5, 1.0, 100, 4, Seeded(1), quantile=0.5)
    algorithm = algorithm_of("fedavg")
    up = type(algorithm.client_finish(algorithm.client_start(algorithm.server_init(torch.zeros(2)), ()), *_of(2))[0])
    clips = of.first_clips(torch.zeros(2), 1)
    assert clips.tolist() == [0.5]
    seen = []
    for round_ in range(60):
        mean = PrivateMean(of, algorithm, up(torch.zeros(2)), round_, clips)
        assert mean.clip == float(clips[0])
        for length in torch.empty(100).log_normal_(math.log(3.0), 1.0, generator=g):
            mean.add([torch.stack([length, torch.zeros(())])], 1.0)
        clips = mean.next_clips()
        seen.append(float(clips[0]))
    assert seen[0] == pytest.approx(0.5 * math.exp(0.1), rel=0.03), "nearly all were longer"
    assert sum(seen[-20:]) / 20 == pytest.approx(3.0, rel=0.1), "the median"


def _of(d):
    return algorithm_of("fedavg").server_init(torch.zeros(d)), torch.tensor(0.1)


def test_a_fixed_clip_stays():
    mean = empty_mean("fedavg", NONE)
    mean.add(upload(mean, 0), 1.0)
    assert mean.next_clips().shape == (0,)
    assert mean.clip == 1e12


def test_clients_are_drawn_independently():
    rounds = [sample_independently(Seeded(0), round_, 40, 10) for round_ in range(2000)]
    sizes = torch.tensor([float(len(drawn)) for drawn in rounds])
    assert float(sizes.mean()) == pytest.approx(10.0, abs=3 * math.sqrt(7.5 / 2000))
    assert float(sizes.var()) == pytest.approx(7.5, rel=0.1), "binomial: 40 times 1/4 times 3/4"
    often = torch.zeros(40)
    for drawn in rounds:
        often[drawn] += 1
    assert float((often / 2000 - 0.25).abs().max()) < 4.5 * math.sqrt(0.25 * 0.75 / 2000)
    assert len(sample_independently(Seeded(0), 0, 40, 40)) == 40


@pytest.mark.parametrize("name", few(name for name in EVERYWHERE if name not in WITH_ROOTS))
@pytest.mark.usefixtures("all_algorithms")
def test_without_noise_and_with_huge_clips_it_is_the_plain_mean(name, task):
    ours = private_simulation(EVERYWHERE[name], task, NONE, rounds=3)
    theirs = simulation(EVERYWHERE[name], task, clients_per_round=5, steps=4, epochs=None, rounds=3)
    for private, plain in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert private.test_loss == pytest.approx(plain.test_loss, abs=1e-10)
        assert (private.clients, private.up_bytes) == (plain.clients, plain.up_bytes)
    torch.testing.assert_close(ours.state.tensors(), theirs.state.tensors(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stack", [2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", few(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_stacked_clients_match_the_loop_in_rounds_without_any_too(name, stack, task):
    of = privacy(clients=1, quantile=0.5)
    loop = private_simulation(EVERYWHERE[name], task, of)
    stacked = private_simulation(EVERYWHERE[name], task, of, stack=stack)
    counts = []
    for ours, theirs in zip(stacked.rounds(), loop.rounds(), strict=True):
        torch.testing.assert_close(stacked.state.tensors(), loop.state.tensors(), rtol=1e-10, atol=1e-10)
        assert (ours.clients, ours.clip) == (theirs.clients, pytest.approx(theirs.clip))
        counts.append(ours.clients)
    assert counts == [1, 0, 2, 2, 0]


def test_a_round_without_clients_still_adds_noise(task):
    sim = private_simulation(CASES["fedadamw-mean-v"], task, privacy(clients=1))
    sim.step()
    before = sim.state
    record = sim.step()
    assert (record.clients, record.rejected, record.up_bytes, record.down_bytes) == (0, 0, 0, 0)
    assert math.isnan(record.train_loss) if record.train_loss is not None else True
    moved = sim.state.server.x - before.server.x
    assert float(moved.std()) == pytest.approx(0.01 * math.sqrt(1.04) * 0.05, rel=0.2)
    assert float(sim.state.server.t) == 2 * 4
    assert sim.losses == {}


def test_no_loss_of_a_client_is_told(task):
    sim = private_simulation(CASES["fedavg"], task, privacy(clients=5))
    sim.step()
    assert sim.losses == dict.fromkeys(range(5))


@pytest.mark.parametrize("name", few(["fedadamw-mean-v", "scaffold"]))
def test_a_resumed_run_has_the_bits_of_one_that_went_on(name, task):
    of = privacy(clients=3, quantile=0.5)
    whole, first, second = (private_simulation(CASES[name], task, of) for _ in range(3))
    clips = [record.clip for record in whole.rounds()]
    list(zip(range(2), first.rounds(), strict=False))
    second.restore(Saved(2, {key: t.clone() for key, t in first.tensors().items()}))
    assert [record.clip for record in second.rounds()] == clips[2:]
    assert len(set(clips)) == 5
    for key, t in whole.tensors().items():
        assert torch.equal(second.tensors()[key], t), key


def test_uploads_are_clipped_as_their_codec_decodes_them(task):
    of = replace(NONE, clip=1e-4)
    sim = private_simulation(CASES["fedavg"], task, of, upload="top-k", keep=0.2)
    for _ in range(3):
        before = sim.state.server.x
        record = sim.step()
        assert 0 < float((sim.state.server.x - before).norm()) <= record.clients * 1e-4 / 5 * (1 + 1e-6)
    lost = [t for key, t in sim.tensors().items() if "residual" in key]
    assert max(float(t.abs().max()) for t in lost) > 1e-3, "clients keep what was longer than the clip"


def test_a_client_without_finite_numbers_adds_nothing():
    task = PoisonedTask()
    task.poison = frozenset({0})
    sim = private_simulation(CASES["fedavg"], task, NONE)
    record = sim.step()
    assert (record.clients, record.rejected) == (4, 1)
    task.poison = frozenset(range(200))
    before = sim.state.server.x
    with pytest.warns(UserWarning, match=ONLY_NOISE[:30]):
        record = sim.step()
    assert (record.clients, record.rejected) == (0, 5)
    assert torch.equal(sim.state.server.x, before), "without noise that is nothing at all"


def test_second_moments_near_the_largest_number_add_no_more_than_the_clip():
    algorithm = algorithm_of("fedadamw-mean-v")
    down = algorithm.broadcast(algorithm.server_init(torch.zeros(BLOCKS.d)))
    sent = type("Sent", (), {"down": down, "round": 0})
    mean = new_private_mean(replace(NONE, moment_clip=0.5), algorithm, sent, torch.zeros(0))
    huge = mean.up_type(*(torch.full_like(t, 1e38) for t in mean.sums))
    mean.add(huge, 1.0)
    for name, total in zip(huge._fields, mean.sums, strict=True):
        assert total.isfinite().all(), name
    assert float(mean.sums[huge._fields.index("v")].norm()) == pytest.approx(0.5, rel=1e-5)


def test_what_clients_keep_is_neither_clipped_nor_noised(task):
    how = {"clients_per_round": 5, "steps": STEPS, "epochs": None, "rounds": 1}
    ours = personal_simulation(CASES["fedadamw-mean-v"], task, client_privacy=privacy(), **how)
    theirs = personal_simulation(CASES["fedadamw-mean-v"], task, **how)
    before = ours.state.server.x
    for sim in (ours, theirs):
        sim.step()
    for client in range(5):
        assert torch.equal(own_numbers(ours, client), own_numbers(theirs, client))
    moved = float((ours.state.server.x - before).norm())
    assert 0 < moved < float((theirs.state.server.x - before).norm()), "what is shared is clipped"


@pytest.mark.slow
def test_two_ranks_match_one_process_if_a_round_has_few_clients_or_none(tmp_path):
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "support.private_ranks"]
    done = subprocess.run([sys.executable, *run, tmp_path], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr
    for name, stack in product(NAMES, STACKS):
        tensors, facts = read(tmp_path / f"{name}-{stack}", "checkpoint")
        alone = of_few_clients(name, 1)
        assert facts["clients"] == [record.clients for record in alone.rounds()]
        assert {0, 1} < set(facts["clients"])
        torch.testing.assert_close(tensors, alone.tensors(), rtol=1e-10, atol=1e-10)
