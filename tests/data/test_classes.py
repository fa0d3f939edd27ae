"""What columns hold: classes by name or number, in the data, on nodes and in trained heads; natural clients."""

import datetime
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image
from support import tiny_models
from support.text_experiments import experiment

from fedadamw.data.classes import has_fractions, read_classes, read_labels
from fedadamw.data.columns import read_groups
from fedadamw.data.images import ImageSource, load_images
from fedadamw.models.heads import match_classes, sort_like_head
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare import images, texts
from fedadamw.prepare.problem import open_pretrained
from fedadamw.prepare.samples import load_samples, make_partition
from fedadamw.settings.load import load
from fedadamw.validation import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels")
    for kind in ("bert", "llama"):
        tiny_models.folder(path / kind, kind)
    return path


def column(values, kind=None, name="label"):
    features = None if kind is None else datasets.Features({name: datasets.Value(kind)})
    return datasets.Dataset.from_dict({name: values}, features=features)


def named(values, *names):
    features = datasets.Features({"label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"label": values}, features=features)


LEVELS = {"A": 10, "B": 80, "a": 150, "b": 220}


def letters(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), LEVELS[name]).save(folder / name / f"{i}.png")
    return str(folder)


def test_letters_that_differ_by_case_keep_their_classes_held_out_and_on_a_node(tmp_path):
    train, test = load_images(
        ImageSource(letters(tmp_path / "train", "ABab"), test_source=letters(tmp_path / "held", "Aab"))
    )
    node = load("digits", [f"data.source={letters(tmp_path / 'node', 'Bb')}", "data.test_split=train"])
    own = images.load_test(node, None, {"classes": train.classes, "shape": [1, 8, 8]})
    for found in (train, test, own):
        assert [LEVELS[found.classes[label]] for label in found.labels] == found.pixels[:, 0, 0, 0].tolist()
    assert (train.classes, len(test), len(own)) == (("A", "B", "a", "b"), 9, 6)


@pytest.mark.parametrize(
    ("names", "classes", "places"),
    [
        (("UP", "down"), ("down", "up"), [1, 0]),
        (("A", "b", "a"), ("a", "A", "b"), [1, 2, 0]),
        (("A", "b"), ("a", "B", "b"), [None, 2]),  # A might be another letter than a, as B is
        (("A", "a"), ("a", "b"), [None, 0]),
        (("x", "up"), ("up", "down"), [None, 0]),
    ],
)
def test_names_are_matched_but_for_case_only_where_that_is_plain(names, classes, places):
    assert match_classes(names, classes) == places


def test_a_letter_that_might_be_another_class_is_refused():
    held_out = named([0, 1], "A", "b")
    with pytest.raises(InputError, match=r"has a class 'A', which is not one of the 3 training classes \(a, B, b\)"):
        read_labels(held_out, "label", ("a", "B", "b"))
    assert read_labels(held_out, "label", ("b", "a")).tolist() == [1, 0]


def test_a_trained_heads_letters_keep_their_order(place, tmp_path):
    from transformers import BertConfig

    BertConfig(id2label={0: "b", 1: "B", 2: "a"}, label2id={"b": 0, "B": 1, "a": 2}).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sort_like_head(Pretrained(str(tmp_path)), ("B", "a", "b")) == ("b", "B", "a")


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1, 2, 1], ("0", "1", "2")),
        ([5, 1, 3, 2, 4], ("1", "2", "3", "4", "5")),
        ([10, 9, 11], ("9", "10", "11")),
        ([-1, 1, 1], ("-1", "1")),
        ([True, False], ("0", "1")),
        ([3.0, 1.0, 2.0], ("1", "2", "3")),
        ([-1.0, 1.0], ("-1", "1")),
    ],
)
def test_numbers_are_the_classes_that_there_are(values, classes):
    train = column(values)
    assert not has_fractions(train, "label")
    assert read_classes(train, "label") == classes
    labels = read_labels(train, "label", classes)
    assert [float(classes[label]) for label in labels] == [float(value) for value in values]
    some = column([float(value) for value in values[1:]])  # a file, or a node, that lacks a class and has points
    assert read_labels(some, "label", classes).tolist() == labels[1:].tolist()


@pytest.mark.parametrize("value", [0, 6, -1])
def test_a_number_that_training_does_not_have_is_no_position_of_a_class(value):
    with pytest.raises(
        InputError, match=rf"holds {value}, which is not one of the 5 training classes \(1, 2, 3, 4, 5\)"
    ):
        read_labels(column([value] * 3), "label", ("1", "2", "3", "4", "5"))


def test_minus_one_beside_zero_is_said_to_be_a_class(tmp_path):
    for split in ("train", "test"):
        features = datasets.Features({"label": datasets.Value("int64"), "image": datasets.Image()})
        rows = {"label": [-1, 0, 1, 2], "image": [Image.new("L", (8, 8))] * 4}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    line = "holds -1 beside 0 to 2: it is taken for a class; if it marks rows without"
    with pytest.warns(UserWarning, match=line) as said:
        assert load_images(ImageSource(str(tmp_path), label_column="label"))[0].classes == ("-1", "0", "1", "2")
    assert [found.filename for found in said if "-1" in str(found.message)] == [__file__]


def test_an_empty_cell_makes_no_fractions_of_classes():
    empty = column([0.0, 0.0, None, 1.0])
    assert not has_fractions(empty, "label")
    with pytest.raises(InputError, match="column 'label' is empty in row 3 of 4"):
        read_classes(empty, "label")
    assert has_fractions(column([0.5, None]), "label")


def test_words_find_their_classes_as_named_ones_do():
    assert read_labels(column(["UP", "down"]), "label", ("down", "up")).tolist() == [1, 0]
    with pytest.raises(InputError, match="holds 'A', which is not one of the 3 training classes"):
        read_labels(column(["A", "b"]), "label", ("a", "B", "b"))


def test_names_that_differ_by_their_last_zeros_are_kept_apart():
    names = ["a", "a\0", "b"]
    assert read_classes(column(names), "label") == ("a", "a\0", "b")
    assert read_labels(column(names), "label", ("a", "a\0", "b")).tolist() == [0, 1, 2]
    assert len(np.unique(read_groups(column(names), "label"))) == 3
    assert len(np.unique(read_groups(column([b"a", b"a\0"]), "label"))) == 2


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0.5, 1.0], "holds 0.5 where a class is expected: a word or a whole number"),
        ([1.0, float("inf")], "holds inf where a class is expected"),
        ([0, 100_000], "holds 100000: class numbers must be below 100,000"),
        ([-100_000, 0], "holds -100000: class numbers must be"),
        ([0, None], "column 'label' is empty in row 2 of 2"),
        ([0.5, float("nan")], "column 'label' is empty in row 2 of 2"),
        (["up", " "], "column 'label' is empty in row 2 of 2"),
    ],
)
def test_what_names_no_class_is_refused(values, line):
    with pytest.raises(InputError, match=line):
        read_classes(column(values), "label")


def test_declared_classes_stay_those_that_nobody_has_too():
    assert read_classes(named([0, 2], "x", "y", "z"), "label") == ("x", "y", "z")
    with pytest.raises(InputError, match=r"holds -1, which is not one of the 3 training classes \(x, y, z\)"):
        read_labels(named([-1, -1], "x", "y", "z"), "label", ("x", "y", "z"))  # as GLUE hides them


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ((0, 1, 3, 4), ("0", "1", "2", "3", "4")),
        ((0, 1, 3), ("0", "1", "3")),
        ((1, 2, 3, 4, 5), ("1", "2", "3", "4", "5")),
    ],
)
def test_numbers_count_a_trained_heads_classes_where_the_last_is_its_last(place, tmp_path, labels, classes):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    own = AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=5)
    own.save_pretrained(tmp_path / "five")
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "five")
    rows = [f"good film,{labels[i % len(labels)]}" for i in range(20)]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    chosen = experiment(place, f"model={tmp_path / 'five'}", f"data.source={tmp_path / 'own.csv'}")
    train, _ = load_samples(chosen)
    assert train.classes == classes
    assert {int(train.classes[label]) for label in train.labels} == set(labels)


CLIENTS = {
    "words": ["ann", None, "bob"],
    "blank words": ["ann", "  ", "bob"],
    "whole numbers": [0, None, 1],
    "fractions": [0.5, float("nan"), 1.5],
    "dates": [datetime.datetime(2024, 1, 1), None, datetime.datetime(2024, 1, 2)],
}


@pytest.mark.parametrize("kind", CLIENTS)
def test_an_empty_cell_is_no_client(kind):
    values = CLIENTS[kind]
    with pytest.raises(InputError, match="column 'who' is empty in row 2 of 3"):
        read_groups(column(values, name="who"), "who")
    whole = read_groups(column([values[0], values[2], values[0]], name="who"), "who")
    assert np.unique(whole, return_inverse=True)[1].tolist() == [0, 1, 0]


def test_a_list_is_no_client():
    with pytest.raises(InputError, match=r"holds \[1, 2\] where a client's name is expected: a word, a number, a date"):
        read_groups(column([[1, 2], [3, 4]], name="who"), "who")


def test_an_empty_client_matters_only_where_clients_are_natural(place, tmp_path):
    rows = [f"good film {i},{i % 2},{'' if i == 4 else i % 3}" for i in range(12)]
    (tmp_path / "gap.csv").write_text("\n".join(["text,label,who", *rows]) + "\n")
    (tmp_path / "whole.csv").write_text("\n".join(["text,label,who", *rows[5:]]) + "\n")
    (tmp_path / "bare.csv").write_text("text,label\ngood film,1\nbad film,0\n")
    by_column = ["data.validation=0", "partition.kind=column", "partition.column=who"]

    def samples(source, test, *settings):
        files = [f"data.source={tmp_path / source}", f"data.test_source={tmp_path / test}"]
        chosen = experiment(place, *files, *settings)
        found = load_samples(chosen)
        return [len(part) for part in found], len(make_partition(chosen, found[0]))

    with pytest.raises(InputError, match="column 'who' is empty in row 5 of 12"):
        samples("gap.csv", "bare.csv", *by_column)
    assert samples("whole.csv", "gap.csv", *by_column) == ([7, 12], 3)
    assert samples("whole.csv", "bare.csv", *by_column) == ([7, 2], 3)
    assert samples("gap.csv", "bare.csv", *by_column, "partition.kind=iid") == ([12, 2], 1)


def test_numbers_count_the_classes_of_a_trained_head_for_images_too(tmp_path):
    from transformers import ViTConfig

    ViTConfig(num_labels=5).save_pretrained(tmp_path / "five")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.new("L", (8, 8), i) for i in range(8)], "label": [0, 1, 3, 4] * 2}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    given = [f"data.source={tmp_path / 'train.parquet'}", "data.validation=0.25"]
    five = load("digits", [*given, f"model={tmp_path / 'five'}"])
    kept, _ = images.load(five, open_pretrained(five))
    fresh, _ = images.load(load("digits", given), None)
    assert (kept.classes, kept.labels.tolist()) == (("0", "1", "2", "3", "4"), [0, 1, 3, 4] * 2)
    assert (fresh.classes, fresh.labels.tolist()) == (("0", "1", "3", "4"), [0, 1, 2, 3] * 2)


def test_classes_by_which_language_is_split_are_known_on_held_out_text(place, tmp_path):
    rows = ["good film,up", "bad film,down"] * 6
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    settings = [f"data.source={tmp_path / 'own.csv'}", "data.label_column=label", "data.validation=0"]
    chosen = experiment(place, *settings, kind="llama", task="causal-lm")
    found = texts.load_test(chosen, open_pretrained(chosen), {"classes": ["down", "up"], "edges": None})
    assert (found.classes, found.labels.tolist()) == (("down", "up"), [1, 0] * 6)


def test_folders_of_classes_that_only_the_held_out_split_has_are_no_classes(tmp_path):
    def folders(root, *names):
        for name in names:
            (tmp_path / root / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8), 10 * i).save(tmp_path / root / name / f"{i}.png")

    folders("set/train", "cat", "dog")
    folders("set/test", "Cat")
    train, test = load_images(ImageSource(str(tmp_path / "set")))
    assert (train.classes, test.labels.tolist()) == (("cat", "dog"), [0, 0, 0])
    folders("set/test", "bird")
    with pytest.raises(InputError, match="a class 'bird', which is not one of the 2 training classes"):
        load_images(ImageSource(str(tmp_path / "set")))
