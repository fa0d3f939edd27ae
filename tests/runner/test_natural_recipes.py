"""The recipes of natural clients, by the command, on small files laid out like the hub's."""

import json

import numpy as np
import pytest
from support import image_files, natural_sets, tiny_models
from transformers import AutoModelForImageClassification

from fedadamw.report.client_scores import read_lines
from fedadamw.runner.partition_file import read_names, read_partition
from fedadamw.settings.load import load

FEW = ("training.rounds=2", "training.batch_size=4", "training.evaluate_every=1", "device=cpu", "threads=1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def run_recipe(run_main, tmp_path):
    """run_recipe(name, settings...): run it to its end; returns the run's folder, its records and what was said."""

    def run(name, *settings):
        folder = tmp_path / "run"
        words = [word for setting in (*FEW, *settings) for word in ("-s", setting)]
        done = run_main("run", f"natural/{name}", *words, "--out", str(folder))
        assert done.returncode == 0, done.stderr
        return folder, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], done.stderr

    return run


@pytest.mark.filterwarnings("default:partition.minimum=10")
def test_femnist_by_writer(run_recipe, tmp_path):
    source = natural_sets.femnist(tmp_path / "femnist")
    folder, records, said = run_recipe(
        "femnist",
        f"data.source={source}",
        "data.validation=0.05",
        "training.clients_per_round=2",
        "training.evaluate_clients=2",
    )
    assert "partition.minimum=10: 1 of 4 clients have fewer than 10 samples and are left out" in said
    counts, classes = read_partition(folder)
    assert classes == natural_sets.CHARACTERS
    assert counts.shape == (3, 62)
    (scores,) = read_lines(folder / "client_scores.jsonl")
    assert (len(scores["clients"]), max(scores["samples"]) <= 6) == (2, True), "a fifth of each"
    assert 40 <= counts.sum() < 44, "all but those, what the server holds out, and the fourth writer's"
    assert records[-1]["clients_mean"] == pytest.approx(np.mean(scores["accuracy"]))
    assert read_names(folder) == ["f0000_00", "f0001_01", "f0002_02"]
    assert json.loads((folder / "manifest.json").read_text())["data"]["shape"] == [1, 28, 28]
    assert 0 <= records[-1]["test_metrics"]["accuracy"] <= 1


def test_shakespeare_by_role(run_recipe, tmp_path):
    source, model = natural_sets.shakespeare(tmp_path / "texts"), tiny_models.folder(tmp_path / "llama", "llama")
    folder, records, _ = run_recipe(
        "shakespeare",
        f"data.source={source}",
        f"model={model}",
        "data.every=10",
        "data.max_length=64",
        "data.validation=0.2",
        "partition.minimum=2",
        "training.clients_per_round=3",
        "training.evaluate_clients=3",
    )
    assert read_names(folder) == sorted(natural_sets.SPEECHES)
    assert records[-1]["test_metrics"]["perplexity"] > 1
    (scores,) = read_lines(folder / "client_scores.jsonl")
    assert (len(scores["clients"]), min(scores["perplexity"]) > 1) == (3, True)


@pytest.mark.filterwarnings("ignore:.*longer than 64 tokens and were cut")  # the small model takes no more
def test_the_next_character_is_a_class_even_if_it_is_a_space(run_recipe, tmp_path):
    source, model = natural_sets.shakespeare(tmp_path / "texts"), tiny_models.folder(tmp_path / "bert", "bert")
    settings = ("data.task=text", "data.text_column=x", "data.label_column=y", f"model.name={model}", "data.every=3")
    lora = "lora={r: 2, target_modules: [query]}"
    folder, records, _ = run_recipe(
        "shakespeare",
        f"data.source={source}",
        *settings,
        lora,
        "data.max_length=64",
        "data.validation=0.1",
        "partition.minimum=1",
        "training.clients_per_round=3",
        "training.evaluate_clients=3",
    )
    _, classes = read_partition(folder)
    assert {" ", "t", "T", ",", "'"} <= set(classes)
    assert 0 <= records[-1]["test_metrics"]["accuracy"] <= 1


def test_fed_isic_by_hospital(run_recipe, tmp_path):
    source, model = natural_sets.fed_isic(tmp_path / "isic", (12, 8, 6, 5, 4, 1)), image_files.vit(tmp_path / "hub")
    folder, records, _ = run_recipe(
        "fed-isic2019",
        f"data.source={source}",
        f"model={model}",
        "data.image_size=32",
        "training.steps=1",
    )
    counts, classes = read_partition(folder)
    assert (counts.sum(1).tolist(), len(classes)) == ([10, 6, 5, 4, 3, 1], 8)
    assert read_names(folder) == ["0", "1", "2", "3", "4", "5"]
    assert 0 <= records[-1]["test_metrics"]["accuracy"] <= 1
    (scores,) = read_lines(folder / "client_scores.jsonl")
    assert (scores["clients"], scores["samples"]) == ([0, 1, 2, 3, 4], [2, 2, 1, 1, 1]), "a single image is trained on"


def test_fed_isic_with_fedbn_keeps_batch_norm_at_each_hospital(run_recipe, tmp_path):
    source, model = natural_sets.fed_isic(tmp_path / "isic"), image_files.resnet(tmp_path / "hub")
    settings = ("data.image_size=32", "training.steps=1", "algorithm.name=fedavg")
    _, records, _ = run_recipe("fed-isic2019-fedbn", f"data.source={source}", f"model={model}", *settings)
    assert (records[-1]["test_loss"], records[-1]["test_metrics"]) == (None, None)
    assert 0 <= records[-1]["clients_mean"] <= 1
    net = AutoModelForImageClassification.from_pretrained(model, num_labels=8, ignore_mismatched_sizes=True)
    sent = sum(p.numel() for name, p in net.named_parameters() if "normalization" not in name)
    assert records[-1]["up_bytes"] == 6 * 4 * sent, "six hospitals, and neither weights nor statistics of BatchNorm"


def test_every_row_is_counted_from_the_first(tmp_path):
    from fedadamw.data.sources import read_splits

    source = natural_sets.shakespeare(tmp_path / "texts")
    every = read_splits(source, every=80)["train"]
    whole = read_splits(source)["train"]
    assert every["x"][:] == whole["x"][:][::80]
    assert load("digits", ["data.every=3"]).data.every == 3


def test_as_many_writers_as_femnist_has_are_counted_at_once(tmp_path):
    from fedadamw.data.partition import partition_by_column

    generator = np.random.default_rng(0)
    writers = np.array([f"f{writer:04d}" for writer in range(3500)], dtype=object)
    owners = writers[generator.integers(0, 3500, 200_000)]
    labels = generator.integers(0, 62, 200_000)
    partition = partition_by_column(owners, minimum=50)
    counts = partition.counts(labels, 62)
    sizes = dict(zip(*np.unique(owners, return_counts=True), strict=True))
    assert partition.names == tuple(name for name, size in sorted(sizes.items()) if size >= 50)
    assert counts.sum(1).tolist() == [sizes[name] for name in partition.names]
