"""Nodes of a Grid give the simulation's numbers, for every algorithm, codec and adapter."""

import json

import pytest
import torch
from support import tiny_models
from support.cases import CASES, EVERYWHERE, fast_first, rows

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import EVALUATE, assert_same, assert_same_scores, federated, simulated

from fedadamw.engine.ledger import read_page
from fedadamw.engine.simulate import Saved
from fedadamw.trained.load import _count_nodes

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.mark.parametrize("name", rows(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_every_algorithm_gives_the_loops_numbers(tmp_path, name):
    case = EVERYWHERE[name]
    settings = [f"algorithm={json.dumps({'name': case.name, **case.settings})}", f"training.lr={case.lr}"]
    settings += [f"training.{key}={json.dumps(value)}" for key, value in case.training.items()]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 2, "answered": 2}
        assert record.train_loss == expected.train_loss
        assert record.test_metrics == expected.test_metrics
        assert record.up_bytes == expected.up_bytes
        assert record.down_bytes <= expected.down_bytes
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "name",
    fast_first(
        ["fedadamw-mean-v", "fedavg"], ["fedadamw-vm", "fedadamw-agreement", "fedcm", "fedlada", "fedmuon-rank"]
    ),
)
def test_a_client_with_the_last_state_is_sent_only_the_change(tmp_path, name):
    case = CASES[name]
    algorithm = f"algorithm={json.dumps({'name': case.name, **case.settings})}"
    settings = [algorithm, f"training.lr={case.lr}", "training.rounds=3", "training.clients_per_round=3"]
    ours, grid = federated(tmp_path, settings)
    first, second = ours.step(), ours.step()
    grid.workers[101] = type(grid.workers[101])()  # without the last state
    third = ours.step()
    theirs = simulated(settings)
    whole = [record.down_bytes for record in theirs.rounds()]
    assert_same(ours, theirs)
    assert first.down_bytes == whole[0]
    if name == "fedavg":
        assert second.down_bytes == third.down_bytes == whole[0]
        return
    assert second.down_bytes == second.up_bytes < whole[1]
    assert third.federation == {"asked": 4, "answered": 3, "stale": 1, "stale: stale": 1}
    assert third.down_bytes == second.down_bytes + whole[2] // 3
    ours, _ = federated(tmp_path / "b", [*settings, "federation.reuse=false"])
    assert [record.down_bytes for record in ours.rounds()] == whole


@pytest.mark.parametrize(
    "settings",
    [
        ["training.weighting=samples", "partition.kind=dirichlet"],
        ["model.name=resnet18", "model.norm=batch", "training.rounds=1", "data.max_train=90", "data.max_test=20"],
        ["training.epochs=1", "partition.kind=dirichlet", "algorithm.name=scaffold", "training.lr=0.1"],
    ],
    ids=["weights", "batch-norm", "epochs"],
)
def test_weights_statistics_and_unequal_steps_give_the_simulations_numbers(tmp_path, settings):
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for _ in zip(ours.rounds(), theirs.rounds(), strict=True):
        pass
    assert_same(ours, theirs)


@pytest.mark.parametrize("upload", ["bfloat16", "int8", "top-k"])
@pytest.mark.parametrize("name", fast_first(["fedadamw-mean-v", "scaffold"], ["fedadamw-vm"]))
def test_codecs_give_the_simulations_numbers_and_bytes(tmp_path, upload, name):
    case = CASES[name]
    algorithm = f"algorithm={json.dumps({'name': case.name, **case.settings})}"
    settings = [algorithm, f"training.lr={case.lr}", f"training.upload={upload}", "training.rounds=3"]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.up_bytes == expected.up_bytes
    assert_same(ours, theirs)


@pytest.mark.parametrize("aggregate", fast_first(["factors", "alternate"], ["frozen-a", "exact", "residual"]))
def test_adapters_of_a_text_model_give_the_simulations_numbers(tmp_path, aggregate):
    tiny_models.folder(tmp_path / "roberta", "roberta")
    tiny_models.reviews(tmp_path / "reviews.csv")
    settings = [
        "data={task: text, source: %s, validation: 0.2}" % (tmp_path / "reviews.csv"),
        f"model={tmp_path / 'roberta'}",
        "lora={r: 4, target_modules: [query, value]}",
        f"lora.aggregate={aggregate}",
        *EVALUATE,
    ]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for _ in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert_same_scores(ours.scores, theirs.scores)
    assert_same(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_nodes_have_the_base_in_the_servers_type(tmp_path, quantize):
    if quantize != "none":
        pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    tiny_models.half_folder(tmp_path / "llama", "llama", sizes=tiny_models.WIDE)
    tiny_models.reviews(tmp_path / "reviews.csv")
    settings = [
        "data={task: causal-lm, source: %s, validation: 0.2}" % (tmp_path / "reviews.csv"),
        f"model={tmp_path / 'llama'}",
        f"model.quantize={quantize}",
        "lora={r: 4, target_modules: [q_proj, v_proj]}",
    ]
    ours, _ = federated(tmp_path, settings)
    assert "dtype: bfloat16" in ours.clients.registry.messenger.facts["settings"]
    theirs = simulated(settings)
    for _ in zip(ours.rounds(), theirs.rounds(), strict=True):
        pass
    assert_same(ours, theirs)


def test_halves_that_train_in_turn_go_on_from_a_checkpoint_with_their_own_memories(tmp_path):
    tiny_models.folder(tmp_path / "roberta", "roberta")
    tiny_models.reviews(tmp_path / "reviews.csv")
    settings = [
        "data={task: text, source: %s, validation: 0.2}" % (tmp_path / "reviews.csv"),
        f"model={tmp_path / 'roberta'}",
        "lora={r: 2, target_modules: [query], aggregate: alternate}",
        "algorithm.name=scaffold",
        "training.rounds=4",
    ]
    ours, _ = federated(tmp_path, settings)
    records = [ours.step(), ours.step()]
    saved = {name: t.clone() for name, t in ours.tensors().items()}
    ours.step()  # the server will forget this round
    ours.restore(Saved(2, saved))
    records += ours.rounds()
    theirs = simulated(settings)
    for record, expected in zip(records, theirs.rounds(), strict=True):
        assert (record.up_bytes, record.down_bytes) == (expected.up_bytes, expected.down_bytes)
    assert_same(ours, theirs)


def test_a_checkpoint_of_an_earlier_version_has_no_sample_counts():
    text = json.dumps([[[0, 1], [2, 4]], [[{"delta": 1.5}]]])
    page = read_page(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    assert page == ({0: 1, 2: 4}, [[{"delta": 1.5}]], {}, None)
    assert _count_nodes(page) == {"counted": 2, "samples": None}
