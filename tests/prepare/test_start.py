"""A run's folder as model.name: the new run starts from what the old one computes."""

import shutil

import datasets
import pytest
import torch
from support import image_files, tiny_models
from support.trained_texts import TARGETS, lora, settings_of

from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

IMAGES = ["training.rounds=2", "training.steps=2", "training.clients_per_round=2", "threads=1", "device=cpu"]


def run(path, settings, *, resume=False):
    folder = RunFolder(path)
    execute(load("digits", settings), folder, resume=resume, report=False)
    return folder


def first_evaluation(settings):
    """The evaluation of a run before its first round."""
    return prepare(load("digits", settings)).simulation().evaluate()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_models.folders(tmp_path_factory.mktemp("start"), TARGETS)


@pytest.mark.parametrize("model", [["model=vit-micro", "model.depth=1"], ["model=resnet-nano", "model.norm=batch"]])
def test_a_built_in_model_starts_where_the_run_ended(tmp_path, model):
    old = run(tmp_path / "old", [*IMAGES, *model])
    begin = [*IMAGES, f"model={old.path}"]
    last = old.records()[-1]
    found = first_evaluation(begin)
    assert found.loss == pytest.approx(last["test_loss"], abs=1e-6)
    assert found.metrics["accuracy"] == last["test_metrics"]["accuracy"]
    new = run(tmp_path / "new", begin)
    start = new.read_manifest()["model"]["start"]
    assert (start["run"], start["round"], len(start["fingerprint"])) == ("old", 2, 16)
    assert evaluate(open_trained(new.path, []))[0].loss == pytest.approx(new.records()[-1]["test_loss"], abs=1e-6)
    again = run(tmp_path / "again", [*IMAGES, f"model={new.path}"])  # a third run
    assert again.read_manifest()["model"]["start"]["run"] == "new"


def test_a_resumed_run_needs_the_same_start(tmp_path):
    old = run(tmp_path / "old", [*IMAGES, "training.schedule=constant"])
    begin = [*IMAGES, f"model={old.path}", "training.schedule=constant"]
    whole = run(tmp_path / "whole", begin)
    half = RunFolder(shutil.copytree(whole.path, tmp_path / "half"))
    half.state.unlink()
    half.metrics.write_text("")
    run(half.path, begin, resume=True)
    assert half.state.read_bytes() == whole.state.read_bytes()
    run(old.path, [*IMAGES, "training.schedule=constant", "training.rounds=3"], resume=True)
    with pytest.raises(InputError, match="the model changed since the run started"):
        run(half.path, [*begin, "training.rounds=3"], resume=True)


def test_the_best_round_is_a_start(tmp_path):
    settings = [*IMAGES, "training.rounds=4", "training.evaluate_every=1", "keep_best=true", "training.lr=0.02"]
    old = run(tmp_path / "old", settings)
    scores = [record["test_metrics"]["accuracy"] for record in old.records()]
    found = first_evaluation([*IMAGES, f"model={old.path}", "model.best=true"])
    assert found.metrics["accuracy"] == max(scores)
    with pytest.raises(InputError, match="model.best: 'vit-micro' is no run's folder"):
        check_settings(load("digits", ["model.best=true"]), remote=False)


@pytest.mark.parametrize(
    ("kind", "task", "old_lora"),
    [
        pytest.param("bert", "text", None, marks=pytest.mark.slow),
        ("bert", "text", "exact"),
        pytest.param("bert", "text", "factors", marks=pytest.mark.slow),
        ("llama", "causal-lm", "factors"),
        pytest.param("llama", "causal-lm", None, marks=pytest.mark.slow),
        pytest.param("llama", "causal-lm", "exact", marks=pytest.mark.slow),
    ],
)
def test_texts_start_where_the_run_ended_with_adapters_merged(place, tmp_path, kind, task, old_lora):
    settings = settings_of(place, kind, task)
    old = run(tmp_path / "old", [*settings, *(lora(kind, old_lora) if old_lora else [])])
    last = old.records()[-1]
    for adapters in ([], lora(kind, "factors")):
        begin = [*settings, f"model={old.path}", *adapters]
        assert first_evaluation(begin).loss == pytest.approx(last["test_loss"], abs=1e-5)
    new = run(tmp_path / "new", begin)
    expected = new.records()[-1]["test_loss"]
    assert evaluate(open_trained(new.path, []))[0].loss == pytest.approx(expected, abs=1e-5)
    assert export(open_run(new.path), tmp_path / "out") == "the whole model", "its base is nowhere else"
    assert evaluate(open_trained(tmp_path / "out", []))[0].loss == pytest.approx(expected, abs=1e-5)
    assert str(tmp_path) not in (tmp_path / "out" / "fedadamw.json").read_text()


@pytest.mark.parametrize("adapter", [False, True])
def test_an_export_is_a_start(place, tmp_path, adapter):
    settings = settings_of(place, "bert", "text")
    old = run(tmp_path / "old", [*settings, *(lora("bert", "factors") if adapter else [])])
    export(open_run(old.path), tmp_path / "out", merged=True)
    found = first_evaluation([*settings, f"model={tmp_path / 'out'}"])
    assert found.loss == pytest.approx(old.records()[-1]["test_loss"], abs=1e-5)


def test_another_number_of_classes_gets_a_fresh_head(place, tmp_path):
    old = run(tmp_path / "old", settings_of(place, "bert", "text"))
    (tmp_path / "three.csv").write_text("text,label\n" + "".join(f"good film {i},{i % 3}\n" for i in range(30)))
    other = [f"data.source={tmp_path / 'three.csv'}", f"data.test_source={tmp_path / 'three.csv'}"]
    begin = load("digits", [*settings_of(place, "bert", "text"), *other, f"model={old.path}"])
    with pytest.warns(UserWarning, match="classifier starts fresh: it had 2 classes, the data has 3"):
        prepared = prepare(begin)
    before, now = open_run(old.path).model.state_dict(), prepared.workspace.module.state_dict()
    assert now["classifier.weight"].shape[0] == 3
    assert all(torch.equal(now[name], t) for name, t in before.items() if not name.startswith("classifier"))


def test_a_head_whose_classes_come_in_another_order_is_told(tmp_path):
    for name, classes in (("one", "ab"), ("two", "ba")):
        labels = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(classes)))
        pictures = [image_files.noise(8, 8, seed=i) for i in range(20)]
        table = {"image": pictures, "label": [i % 2 for i in range(20)]}
        datasets.Dataset.from_dict(table, features=labels).to_parquet(tmp_path / f"{name}.parquet")
    settings = [*IMAGES, "model=vit-micro", "data.test_source=null", "data.validation=0.2", "partition.clients=2"]
    old = run(tmp_path / "old", [*settings, f"data.source={tmp_path / 'one.parquet'}"])
    with pytest.warns(UserWarning, match="the classes a, b are renamed to b, a"):
        prepare(load("digits", [*settings, f"data.source={tmp_path / 'two.parquet'}", f"model={old.path}"]))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["model.depth=5"], "model.depth=5: the model of .*old has 1"),
        (["data.task=text", "data.source=reviews.csv"], "'vit-micro'|classifies images"),
        (["lora={r: 2}", "model.name=nowhere/at/all/x/y"], "nowhere|could not be loaded"),
    ],
)
def test_what_cannot_be_a_start_is_one_clear_line(tmp_path, settings, line):
    old = run(tmp_path / "old", [*IMAGES, "model.depth=1", "training.rounds=1"])
    with pytest.raises(InputError, match=line):
        prepare(load("digits", [*IMAGES, f"model={old.path}", *settings]))


def test_a_federation_does_not_start_from_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text(load("digits", []).to_yaml())
    with pytest.raises(InputError, match="nodes have no run of the server's; give the folder of its export"):
        check_settings(load("digits", [f"model={tmp_path}"]), remote=True)
    with pytest.raises(InputError, match=r"its manifest.json cannot be read"):
        prepare(load("digits", [*IMAGES, f"model={tmp_path}"]))
