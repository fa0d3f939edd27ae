"""Plain names of folders: `x` means `./x` if that folder exists, throughout a run, and is never taken for a hub id."""

import json
from pathlib import Path

import pytest
import yaml
from support import tiny_models

from fedadamw.checkpoint import CheckpointError
from fedadamw.data.sources import read_held_out, read_splits
from fedadamw.flower import new_app
from fedadamw.models import vision
from fedadamw.models.loading import is_hub_id, locate
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.skeleton import build_skeleton
from fedadamw.prepare.paths import (
    PATHS,
    list_plain_folders,
    make_absolute,
    make_portable,
    make_settings_portable,
    mark_folders,
    restore_paths,
)
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load, parse_settings
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

LORA = ["lora.target_modules=[query,value,dense]", "lora.r=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders `own/bert` and `texts`, with the word None among the classes."""
    path = tmp_path_factory.mktemp("origins")
    tiny_models.folder(path / "own" / "bert", "bert")
    (path / "texts").mkdir()
    for split in ("train", "test"):
        rows = [f"good film {i},None\nbad film {i},Some" for i in range(6)]
        (path / "texts" / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def settings(*more):
    return [
        "data={task: text, source: texts}",
        "model=own/bert",
        "partition={kind: iid, clients: 2}",
        "training={rounds: 1, clients_per_round: 2, steps: 1, batch_size: 4}",
        "device=cpu",
        *more,
    ]


@pytest.fixture(scope="module")
def ended_run(place, tmp_path_factory):
    """A finished run of adapters, started in `place`."""
    folder = RunFolder(tmp_path_factory.mktemp("ended_run") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        execute(load("digits", settings(*LORA)), folder, resume=False, report=False)
    return folder


def test_a_plain_name_reads_the_same_data_as_its_path(place, tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    for i, split in enumerate(("train", "validation_matched", "validation_mismatched")):
        rows = [{"premise": "good", "hypothesis": "film", "label": row % 3} for row in range(6 + i)]
        Path("nli").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(f"nli/{split}-00000-of-00001.parquet")
    Path("words").symlink_to(place / "texts")
    for plain in ("nli", "words"):
        theirs, ours = read_splits(f"./{plain}"), read_splits(plain)
        assert {name: split[:] for name, split in theirs.items()} == {name: split[:] for name, split in ours.items()}
        held_out = read_held_out("nyu-mll/glue", "sst2", plain, "train")  # a configuration is of the hub's data alone
        assert held_out[:] == ours["train"][:]
    assert set(read_splits("words")["train"]["label"]) == {"None", "Some"}
    assert set(read_splits("nli")) == {"train", "validation_matched", "validation_mismatched"}
    Path("notes").write_text("nothing")
    with pytest.raises(InputError, match=r"data.source='notes': a file must end in .csv"):
        read_splits("notes")


def test_a_plain_name_loads_the_same_model_as_its_path(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    assert locate("model.name", "own/bert") == locate("model.name", "./own/bert") == str(place / "own" / "bert")
    assert not is_hub_id("own/bert")
    assert is_hub_id("other/bert")
    assert len(Pretrained("own/bert", "own/bert").tokenizer) == 302
    monkeypatch.chdir(place / "own")
    width = build_skeleton("./bert").get_input_embeddings().weight.shape
    assert build_skeleton("bert").get_input_embeddings().weight.shape == width
    monkeypatch.chdir(tmp_path)
    assert build_skeleton("bert").get_input_embeddings().weight.shape[1] == 768
    (tmp_path / "bert").mkdir()  # of something else
    assert build_skeleton("bert").get_input_embeddings().weight.shape[1] == 768
    with pytest.raises(InputError, match=r"model.name='bert': not a model's folder \(no config.json\)"):
        _ = Pretrained("bert").tokenizer
    with pytest.raises(InputError, match=r"model.name='bert': not a model's folder \(no config.json\)"):
        vision.build_pretrained(Pretrained("bert"), vision.ImageShape(8, 1, 2))


def test_built_in_names_come_before_folders(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vit-micro", "digits"):
        (tmp_path / name).mkdir()
    assert build_skeleton("vit-micro").config.hidden_size == 64
    assert list_plain_folders(load("digits", [])) == []


def test_an_export_never_names_a_folder_as_a_hub_id(place, ended_run, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    export(open_run(ended_run.path), tmp_path / "adapter")
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] != "own/bert"
    )
    head = yaml.safe_load((tmp_path / "adapter" / "README.md").read_text().split("---")[1])
    assert "base_model" not in head
    with pytest.raises(InputError, match="--push: the adapter's base 'own/bert' is on this machine only"):
        export(open_run(ended_run.path), tmp_path / "other", shared=True)
    export(open_run(ended_run.path), tmp_path / "whole", merged=True)
    assert "own/bert" not in (tmp_path / "whole" / "config.json").read_text()


def test_a_folder_of_a_run_is_not_loaded_from_the_hub_elsewhere(place, ended_run, tmp_path, monkeypatch):
    assert ended_run.read_manifest()["folders"] == ["model.name", "data.source"]
    monkeypatch.chdir(tmp_path)
    lost = "model.name='own/bert' was a folder or a file when the run began, and .* has none"
    experiment = load(str(ended_run.config))
    assert experiment.model.name == "own/bert"
    for resume in (
        lambda: execute(experiment, ended_run, resume=True, report=False),
        lambda: export(open_run(ended_run.path), tmp_path / "out"),
        lambda: open_trained(ended_run.path, []),
    ):
        with pytest.raises(InputError, match=lost):
            resume()
    (tmp_path / "own").symlink_to(place / "own")
    with pytest.raises(InputError, match="data.source='texts' was a folder or a file when the run began"):
        open_trained(ended_run.path, [])
    assert evaluate(open_trained(ended_run.path, [("data.source", str(place / "texts"))]))[1] == 12
    (tmp_path / "texts").mkdir()  # other texts of the same name
    for split in ("train", "test"):
        (tmp_path / "texts" / f"{split}.csv").write_text("text,label\n" + "dull film,None\ngreat film,Some\n" * 6)
    with pytest.raises(CheckpointError, match="the data changed since the run started"):
        execute(experiment, ended_run, resume=True, report=False)


def test_a_hub_id_of_a_run_is_not_loaded_from_a_folder(place, ended_run, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    manifest = json.loads(ended_run.manifest.read_text())
    copy = RunFolder(tmp_path / "run")
    copy.path.mkdir()
    copy.config.write_text(ended_run.config.read_text())
    copy.manifest.write_text(json.dumps({**manifest, "folders": ["data.source"]}))
    with pytest.raises(InputError, match="model.name='own/bert' was a hub id when the run began, and .* has a folder"):
        execute(load(str(copy.config)), copy, resume=True, report=False)


def test_nodes_are_sent_folders_as_paths(place, monkeypatch):
    monkeypatch.chdir(place)
    given = load("digits", settings("data.test_source=texts/test.csv", "model.tokenizer=other/bert"))
    sent = mark_folders(given)
    assert (sent.model.name, sent.data.source, sent.data.test_source) == ("./own/bert", "./texts", "./texts/test.csv")
    assert sent.model.tokenizer == "other/bert"
    assert mark_folders(sent) == sent


def test_flower_apps_and_demos_keep_plain_folder_names(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    given = load("digits", settings("model.tokenizer=other/bert", "data.test_source=texts/test.csv"))
    new_app.write_app(tmp_path / "app", given)
    (written,) = tmp_path.glob("app/*/experiment.yaml")
    sent = load(str(written))
    assert (sent.model.name, sent.data.source, sent.data.test_source) == ("./own/bert", "./texts", "./texts/test.csv")
    sent = make_absolute(given)
    assert (sent.model.name, sent.data.source) == (str(place / "own" / "bert"), str(place / "texts"))
    assert (sent.model.tokenizer, make_absolute(sent)) == ("other/bert", sent)


def test_traces_of_devices_are_written_relative_and_read_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = load("digits", ["devices.trace=a.csv"])
    assert make_absolute(given).devices.trace == str(tmp_path / "a.csv")
    portable, relative = make_settings_portable(given.model_dump(mode="json"), tmp_path / "runs" / "one")
    assert (portable["devices"]["trace"], relative) == ("../../a.csv", ["devices.trace"])
    assert restore_paths(portable, relative, tmp_path / "runs" / "one")["devices"]["trace"] == str(tmp_path / "a.csv")
    portable, relative = make_settings_portable(load("digits").model_dump(mode="json"), tmp_path)
    assert (portable["devices"], relative) == (None, [])


IMPOSSIBLE_PATHS = ["~nobody-of-this-name/x", "./" + "a" * 300, "/" + "a" * 5000, "./a\0b", "./" + "b" * 5000 + ".csv"]


@pytest.mark.parametrize("named", IMPOSSIBLE_PATHS, ids=[f"{len(name)} characters" for name in IMPOSSIBLE_PATHS])
def test_an_impossible_path_is_one_line_that_names_the_setting(named, tmp_path):
    devices = ("devices.trace=a.csv", "devices.availability.kind=trace", "devices.availability.trace=b.csv")
    for setting in PATHS:
        given = section = load("digits", settings(*devices)).model_dump(mode="json")
        *sections, key = setting.split(".")
        for name in sections:
            section = section[name]
        section[key] = named
        experiment = parse_settings(given)
        with pytest.raises(InputError, match=rf"^{setting}=.*: no such folder") as found:
            make_absolute(experiment)
        assert len(str(found.value)) < 400
        for reads in (locate, portable_in(tmp_path)):
            with pytest.raises(InputError, match=rf"^{setting}=.*: no such folder"):
                reads(setting, named)
    for reads in (
        lambda: read_splits(named),
        lambda: build_skeleton(named),
        lambda: read_held_out("digits", None, named, None),
    ):
        with pytest.raises(InputError, match=": no such (folder|file)") as found:
            reads()
        assert len(str(found.value)) < 400


def portable_in(folder):
    return lambda setting, value: make_portable(setting, value, folder)


@pytest.mark.parametrize("name", ["a" * 5000, "package:" + "a" * 5000 + "/x", "package:fedadamw/" + "a" * 5000])
def test_a_very_long_model_name_is_one_short_line(name):
    with pytest.raises(InputError) as found:
        build_skeleton(name)
    assert len(str(found.value)) < 1500
