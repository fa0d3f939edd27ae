"""Files of texts as they come: labels that are words, numbers or both, splits in files, and files that are broken."""

import json

import pytest
import torch
from support import tiny_models
from support.text_experiments import experiment

from fedadamw.data.sources import read_held_out, read_splits
from fedadamw.models.heads import sort_like_head
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare.samples import load_samples
from fedadamw.prepare.simulation import prepare
from fedadamw.validation import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    tiny_models.folder(path / "bert", "bert")
    return path


def csv(path, labels, texts=("good film", "bad film")):
    """A CSV file with these labels, and texts in turn."""
    rows = [f"{texts[i % len(texts)]},{label}" for i, label in enumerate(labels)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def both(place, tmp_path, train, test, *settings):
    """The labels of a training and a held-out file, and the classes."""
    files = [csv(tmp_path / "train.csv", train), csv(tmp_path / "test.csv", test)]
    given = [f"data.source={files[0]}", f"data.test_source={files[1]}", "data.validation=0", *settings]
    found = load_samples(experiment(place, *given))
    return *(samples.labels.tolist() for samples in found), found[0].classes


def test_numbers_of_a_file_are_the_classes_of_that_name(place, tmp_path):
    train, test, classes = both(place, tmp_path, ["1", "2", "3", "other"], [2, 1, 2])
    assert classes == ("1", "2", "3", "other")
    assert (train, test) == ([0, 1, 2, 3], [1, 0, 1])


def test_many_classes_by_number_may_have_one_by_a_word(place, tmp_path):
    train, _, classes = both(place, tmp_path, [*range(20), "other"], [3])
    assert (len(classes), len(train)) == (21, 21)


def test_numbers_that_are_no_names_are_positions_and_that_is_said(place, tmp_path):
    with pytest.warns(UserWarning, match="holds numbers, which are taken as the classes in order: down, up"):
        _, test, _ = both(place, tmp_path, ["up", "down"], [0, 1, 1])
    assert test == [0, 1, 1]


def test_whole_numbers_are_predicted_where_the_task_is_so_and_large_ones_anywhere(place, tmp_path):
    rows = [{"sentence1": "good", "sentence2": "film", "label": float(i % 4)} for i in range(20)]
    (tmp_path / "similar.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, _ = load_samples(experiment(place, f"data.source={tmp_path / 'similar.jsonl'}", task="stsb"))
    assert sorted(set(train.targets)) == [0, 1, 2, 3]
    prices = csv(tmp_path / "prices.csv", [f"{100_000 + i}.0" for i in range(20)])
    assert load_samples(experiment(place, f"data.source={prices}"))[0].targets.max() > 100_000


def test_whole_numbers_with_a_point_are_classes(place, tmp_path):
    train, test, classes = both(place, tmp_path, ["0.0", "1.0", "1.0"], [1, 0])
    assert (train, test, classes) == ([0, 1, 1], [1, 0], ("0", "1"))


@pytest.mark.parametrize("of", ["a file", "a folder"])
def test_the_words_none_and_null_are_words(place, tmp_path, of):
    path = csv(tmp_path / "train.csv", ["None", "null"] * 5, texts=("n/a", "good"))
    train, _ = load_samples(experiment(place, f"data.source={path if of == 'a file' else tmp_path}"))
    assert train.classes == ("None", "null")


def test_a_trained_heads_order_of_classes_is_kept(place, tmp_path):
    """Whose head says 0 for `up` goes on to say so, whatever the order of the data's words."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    own = AutoModelForSequenceClassification.from_pretrained(
        place / "bert", id2label={0: "UP", 1: "DOWN"}, label2id={"UP": 0, "DOWN": 1}
    )
    own.save_pretrained(tmp_path / "own")
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "own")
    path = csv(tmp_path / "data.csv", ["up", "down"] * 10)
    prepared = prepare(experiment(place, f"model={tmp_path / 'own'}", f"data.source={path}"))
    assert prepared.train.classes == ("up", "down")
    assert prepared.workspace.module.config.id2label == {0: "up", 1: "down"}
    with pytest.warns(UserWarning, match="has the classes UP, DOWN; they are renamed to bad, good"):
        sort_like_head(Pretrained(str(tmp_path / "own")), ("bad", "good"))


def test_both_held_out_splits_of_mnli_are_there(place, tmp_path):
    import datasets

    for i, split in enumerate(("train", "validation_matched", "validation_mismatched")):
        rows = [{"premise": "good", "hypothesis": f"film {i}", "label": row % 3} for row in range(6 + i)]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    assert {name: len(rows) for name, rows in read_splits(str(tmp_path)).items()} == {
        "train": 6,
        "validation_matched": 7,
        "validation_mismatched": 8,
    }
    for settings, held_out in (([], 7), (["data.test_split=validation_mismatched"], 8)):
        given = [f"data.source={tmp_path}", "data.validation=0", *settings]
        assert len(load_samples(experiment(place, *given, task="mnli"))[1]) == held_out


def test_splits_that_datasets_tells_apart_are_left_to_it(tmp_path):
    import datasets

    for name, count in (("train", 4), ("train_extra", 5), ("test", 2)):
        datasets.Dataset.from_list([{"text": "good"}] * count).to_parquet(str(tmp_path / f"{name}.parquet"))
    assert {name: len(rows) for name, rows in read_splits(str(tmp_path)).items()} == {"train": 9, "test": 2}


def test_a_configuration_is_of_the_training_data_alone(tmp_path):
    """GLUE of the hub names its own; a held-out file has none."""
    csv(tmp_path / "test.csv", [0, 1])
    assert len(read_held_out("nyu-mll/glue", "sst2", str(tmp_path), None)) == 2


def test_f1_is_of_one_kind_whatever_a_file_holds(place, tmp_path):
    files = [csv(tmp_path / "train.csv", ["a", "b", "c"] * 4), csv(tmp_path / "test.csv", ["a", "b"] * 4)]
    given = [f"data.source={files[0]}", f"data.test_source={files[1]}", "data.validation=0"]
    task = prepare(experiment(place, *given)).task
    outputs = torch.tensor([[0.0, i % 2, 1] for i in range(8)])  # loss, label, prediction: always b
    assert task.score(outputs).metrics["f1"] == pytest.approx((0 + 2 / 3) / 2)  # macro, of a and b


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "own.csv': the file is empty"),
        ("text,label\n", "own.csv' could not be read: it has no rows"),
        (
            "text,label\n" + "".join(f"good,{i}.5\n" for i in range(30)) + "bad,NA\n",
            "'label' holds numbers, except for NA",
        ),
        ("text,label\ngood,1\nbad,0,2,3\n", "could not be read: .*Expected 2 fields in line 3, saw 4"),
        ("text,label\ngood,up\nbad,up\n", "column 'label' has only one class, 'up'"),
        ("text,label\ngood,up\n,down\n", "column 'text' holds None where a text is expected, in row 2 of 2"),
    ],
)
def test_a_broken_file_is_one_clear_line(place, tmp_path, content, line):
    (tmp_path / "own.csv").write_text(content)
    with pytest.raises(InputError, match=line) as found:
        prepare(experiment(place, f"data.source={tmp_path / 'own.csv'}"))
    assert "\n" not in str(found.value)


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(place, tmp_path, monkeypatch):
    (tmp_path / "home").touch()  # a file: nobody can write below it, root included
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    ours = csv(tmp_path / "train.csv", [0, 1])
    with pytest.raises(InputError, match=r"train.csv' .* cache cannot be written: .*home/datasets.*; set HF_HOME to"):
        prepare(experiment(place, f"data.source={ours}"))


@pytest.mark.parametrize("label", [[1, 2], {"a": 1}])
def test_labels_that_are_no_words_or_numbers_are_refused(place, tmp_path, label):
    (tmp_path / "own.jsonl").write_text("".join(json.dumps({"text": "good", "label": label}) + "\n" for _ in range(4)))
    with pytest.raises(InputError, match="column 'label' holds .* where a class is expected: a word or a number"):
        prepare(experiment(place, f"data.source={tmp_path / 'own.jsonl'}"))


def test_a_held_out_file_is_named_where_it_lacks_a_column(place, tmp_path):
    ours, theirs = csv(tmp_path / "train.csv", [0, 1]), tmp_path / "test.csv"
    theirs.write_text("text;label\ngood;1\n")
    with pytest.raises(InputError, match="data.test_source=.*test.csv' has no column 'text'; it has text;label"):
        load_samples(experiment(place, f"data.source={ours}", f"data.test_source={theirs}", "data.validation=0"))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["model=."], r"model.name='.': not a model's folder \(no config.json\)"),
        (["model=package:not.there/model"], "no package 'not.there' is installed"),
        (["lora.target_modules=query"], r"lora.target_modules=query: give a list, \[query\]"),
    ],
)
def test_a_slip_of_the_hand_is_one_clear_line(place, tmp_path, monkeypatch, settings, line):
    monkeypatch.chdir(tmp_path)
    path = csv(tmp_path / "train.csv", [0, 1] * 5)
    with pytest.raises(InputError, match=line):
        prepare(experiment(place, f"data.source={path}", *settings))
