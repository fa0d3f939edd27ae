"""Texts as data: files of every kind, GLUE's own columns and metrics, dialogues; and what is wrong with them."""

import json

import numpy as np
import pytest
import torch
from support import tiny_models
from support.checkout import SHARED, need
from support.text_experiments import decode_texts, experiment

from fedadamw.data.scoring import compute_metrics
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare.samples import load_samples
from fedadamw.prepare.simulation import prepare
from fedadamw.validation import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    for kind in ("bert", "roberta", "llama"):
        tiny_models.folder(path / kind, kind)
    tiny_models.folder(path / "unpadded", "llama", pad=False)
    tiny_models.reviews(path / "reviews.csv")
    return path


ROWS = [{"review": "good film", "mood": "up", "n": 2.5}, {"review": "bad, dull film", "mood": "down", "n": 1.5}] * 4


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_of_every_kind_with_named_columns(place, tmp_path, suffix):
    import datasets

    path = tmp_path / f"own.{suffix}"
    data = datasets.Dataset.from_list(ROWS)
    write = {"csv": data.to_csv, "jsonl": data.to_json, "parquet": data.to_parquet}[suffix]
    write(str(path))
    named = ["data.text_column=review", "data.label_column=mood", "data.validation=0", f"data.test_source={path}"]
    train, test = load_samples(experiment(place, f"data.source={path}", *named))
    assert train.classes == ("down", "up")
    assert decode_texts(place, train)[:2] == ["good film", "bad, dull film"]
    assert train.labels.tolist() == test.labels.tolist() == [1, 0] * 4


def test_numbers_are_predicted_and_partitioned_by_bins(place, tmp_path):
    import datasets

    path = tmp_path / "numbers.jsonl"
    datasets.Dataset.from_list([{"text": "good " * i, "label": i / 2} for i in range(1, 21)]).to_json(str(path))
    prepared = prepare(experiment(place, f"data.source={path}", "partition.kind=mix"))
    every = sorted([*prepared.train.targets, *prepared.test.targets])
    assert every == np.arange(0.5, 10.5, 0.5).tolist()
    assert (np.bincount(prepared.train.labels) <= 5).all()
    assert len(prepared.train.classes) == 5
    record = prepared.simulation().step()
    assert list(record.test_metrics) == ["spearman", "pearson"]
    assert prepared.workspace.module.num_labels == 1


def test_natural_clients_come_from_a_column(place):
    prepared = prepare(
        experiment(
            place, "partition={kind: column, column: who}", "training={rounds: 1, clients_per_round: 5, steps: 1}"
        )
    )
    assert len(prepared.partition) == 5


@pytest.fixture
def pairs(tmp_path):
    import datasets

    path = tmp_path / "pairs.jsonl"
    rows = [{"id": str(i), "a": "good", "b": "bad film", "label": i % 2} for i in range(10)]
    datasets.Dataset.from_list(rows).to_json(str(path))
    return path


def test_pairs_are_read_together_and_told_apart(place, pairs, tmp_path):
    types = tmp_path / "types"
    tiny_models.folder(types, "bert", types=True)
    named = [f"data.source={pairs}", "data.text_column=a", "data.text_pair_column=b"]
    plain, _ = load_samples(experiment(place, *named))
    assert decode_texts(place, plain)[0] == "goodbad film"
    assert plain.marks.sum() == 0
    prepared = prepare(experiment(place, *named, f"model={types}"))
    assert prepared.train.fingerprint != plain.fingerprint  # the same rules and words, and yet not the same tokens
    ids, _, marks, _ = prepared.task.batch(torch.arange(1), torch.empty(1, 0))
    words = Pretrained(str(place / "bert")).tokenizer
    assert words.decode(ids[0][marks[0] == 1]) == "bad film</s>"


def test_the_text_is_never_guessed_among_several_columns(place, pairs):
    with pytest.raises(InputError, match=r"several columns of text \(id, a, b\) among .*data.text_column"):
        load_samples(experiment(place, f"data.source={pairs}"))


def test_the_labels_are_never_taken_for_the_text(place, tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("label,review\n" + "up,good film\ndown,bad film\n" * 5)
    train, _ = load_samples(experiment(place, f"data.source={path}"))
    assert set(decode_texts(place, train)) == {"good film", "bad film"}


def test_classes_of_another_order_are_matched_by_name(place, tmp_path):
    import datasets

    def written(name, names):
        kinds = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        rows = {"text": ["good", "bad"] * 5, "label": [names.index("pos"), names.index("neg")] * 5}
        datasets.Dataset.from_dict(rows, features=kinds).to_parquet(str(tmp_path / name))
        return tmp_path / name

    ours, theirs = written("a.parquet", ["neg", "pos"]), written("b.parquet", ["pos", "neg"])
    train, test = load_samples(
        experiment(place, f"data.source={ours}", f"data.test_source={theirs}", "data.validation=0")
    )
    assert train.labels.tolist() == test.labels.tolist() == [1, 0] * 5


@pytest.mark.parametrize(
    ("task", "labels", "predicted", "expected"),
    [
        ("accuracy", [0, 1, 2, 2], [0, 1, 1, 2], 0.75),
        ("f1", [0, 1, 1, 1], [1, 1, 1, 0], 2 / 3),
        ("matthews", [0, 1, 1, 0], [0, 1, 1, 0], 1.0),
        ("matthews", [0, 1, 1, 0], [0, 0, 0, 0], 0.0),
        ("spearman", [0.1, 0.5, 2.0], [1.0, 8.0, 9.0], 1.0),
        ("spearman", [0.1, 0.5, 2.0], [1.0, 1.0, 1.0], 0.0),
        ("pearson", [0.0, 1.0], [3.0, 1.0], -1.0),
    ],
)
def test_metrics(task, labels, predicted, expected):
    assert compute_metrics((task,), np.array(labels), np.array(predicted), 2)[task] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "count", "held_out", "main"),
    [
        pytest.param("sst2", 67_349, 872, "accuracy", marks=pytest.mark.slow),
        ("cola", 8_551, 1_043, "matthews"),
        ("mrpc", 3_668, 408, "f1"),
        ("rte", 2_490, 277, "accuracy"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* were cut")
def test_glue_as_it_lies_on_disk(place, task, count, held_out, main):
    source = need(SHARED / f"glue-{task}")
    prepared = prepare(experiment(place, "data.validation=0", "data.max_length=48", f"data.source={source}", task=task))
    assert (len(prepared.train), len(prepared.test)) == (count, held_out)
    assert len(prepared.train.classes) == 2
    assert next(iter(prepared.simulation().evaluate().metrics)) == main


def test_texts_are_tokenised_once(place, monkeypatch):
    train, _ = load_samples(experiment(place))

    def never(*_arguments, **_settings):
        raise AssertionError("tokenised again")

    monkeypatch.setattr("transformers.tokenization_utils_base.PreTrainedTokenizerBase.__call__", never)
    again, _ = load_samples(experiment(place))
    assert again.fingerprint == train.fingerprint
    with pytest.raises(Exception, match="tokenised again"):
        load_samples(experiment(place, "data.max_length=16"))


def test_long_texts_are_cut_and_counted(place):
    with pytest.warns(UserWarning, match=r"\d+ of 60 training texts are longer than 8 tokens and were cut"):
        train, _ = load_samples(experiment(place, "data.max_length=8", kind="roberta"))
    assert train.lengths.max() == 8
    parts = load_samples(experiment(place, kind="roberta"))
    assert train.truncated == sum((part.lengths > 8).sum() for part in parts)
    with pytest.warns(UserWarning, match="were cut"):
        facts = prepare(experiment(place, "data.max_length=8", kind="roberta")).facts
    assert facts["cut"] == [train.truncated, 0], "what is held out of the training split is counted there"


def test_roberta_has_fewer_places_than_positions(place):
    roberta, bert = (Pretrained(str(place / kind)) for kind in ("roberta", "bert"))
    roberta.tokenizer.model_max_length = bert.tokenizer.model_max_length = 10**30
    assert roberta.max_length(None) == 64  # 66 less those up to the padding's
    assert bert.max_length(None) == 66


def test_a_model_for_very_long_texts_gets_a_limit_that_is_said(place, monkeypatch):
    monkeypatch.setattr("fedadamw.models.pretrained.AUTO_LENGTH", 8)
    with pytest.warns(UserWarning, match="longer than 8 tokens and were cut; the model takes 64, set data.max_length"):
        train, _ = load_samples(experiment(place, kind="roberta"))
    assert train.lengths.max() == 8
    for given in ("null", "64"):
        assert load_samples(experiment(place, f"data.max_length={given}", kind="roberta"))[0].lengths.max() > 8
    with pytest.warns(UserWarning, match=r"divided after 8 tokens: \d+ more samples; the model takes 64"):
        load_samples(experiment(place, kind="llama", task="causal-lm"))


@pytest.mark.parametrize("given", ["07", "long", "true", "9.5"])
def test_a_length_is_a_number_or_auto(place, given):
    with pytest.raises(InputError, match=f"data.max_length=.*{given[1:3]}.*: give at least 8 tokens, auto, or null"):
        experiment(place, f"data.max_length={given}")


def test_taking_samples_takes_their_tokens(place):
    train, _ = load_samples(experiment(place, kind="roberta"))
    some = train.select(np.array([5, 1, 1]))
    assert decode_texts(place, some) == [decode_texts(place, train)[i] for i in (5, 1, 1)]
    assert some.labels.tolist() == train.labels[[5, 1, 1]].tolist()
    assert some.fingerprint != train.fingerprint


# What is wrong


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["data.text_column=review"], "has no column 'review'; it has text, label, who"),
        (["data.label_column=mood"], "has no column 'mood'; it has text, label, who"),
        (["data.task=sst3"], r"data.task='sst3' is unknown \(did you mean 'sst2'\?\); use one of image, text"),
        (["data.task=rte"], "has no column 'sentence1'"),
        (["data.source=./no.csv"], r"data.source='./no.csv': no such file"),
        (["data.source=digits"], "data.task='text' needs data.source: a folder, a file or a hub id"),
        (["model=vit-tiny"], "model.name='vit-tiny' classifies images; data.task='text' takes a text model"),
        (["model=./nowhere"], "model.name='./nowhere': no such folder"),
        (["model=package:no_such_thing/model"], "no package 'no_such_thing' is installed"),
        (["model.tokenizer=./nowhere"], "model.tokenizer='./nowhere': no such folder"),
        (["model.pad_token=<fill>"], "model.pad_token='<fill>' is not among the tokenizer's 30. tokens"),
        (["data.max_length=500"], "data.max_length=500: '.*' takes 66 tokens"),
        (["data.validation=0"], "has no split named test or validation or valid or val; it has train"),
        (["data.flip=true"], "data.flip is not a setting of data.task='text'"),
        (["data.prompt_column=text"], "data.prompt_column is not a setting of data.task='text'"),
        (["data.task=causal-lm"], "it attends to later tokens, so it cannot predict the next"),
        (
            ["lora.rank=4"],
            r"lora.rank is unknown \(did you mean 'ranks'\?\); use one of r, alpha, dropout, target_modules",
        ),
        (["lora.aggregate=mean"], "lora.aggregate='mean'"),
    ],
)
def test_wrong_input_is_one_clear_line(place, settings, line):
    with pytest.raises(InputError, match=line) as found:
        prepare(experiment(place, *settings))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (
            [{"text": "good", "label": 0}, {"text": None, "label": 1}],
            "column 'text' holds None where a text is expected",
        ),
        ([{"text": "good", "label": "up"}, {"text": "bad", "label": ""}], "column 'label' is empty in row 2 of 20"),
        ([{"text": "good", "label": 0}, {"text": "bad", "label": None}], "column 'label'"),
        (
            [{"text": "good", "label": 5_000_000}] * 2,
            "column 'label' holds 5000000: class numbers must be below 100,000",
        ),
        ([{"text": "good"}, {"text": "bad"}], "no label column found among text"),
        ([{"label": 0}, {"label": 1}], "no column of text among label"),
    ],
)
def test_wrong_data_is_one_clear_line(place, tmp_path, rows, line):
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 10))
    with pytest.raises(InputError, match=line):
        prepare(experiment(place, f"data.source={path}"))


def test_padding_that_would_move_positions_is_refused(place):
    with pytest.raises(InputError, match="model.pad_token='</s>': .* counts positions from its token 1"):
        prepare(experiment(place, "model.pad_token=</s>", kind="roberta"))


def test_glue_with_labels_of_another_kind_is_refused(place, tmp_path):
    path = tmp_path / "half.jsonl"
    path.write_text("".join(json.dumps({"sentence": "good", "label": i / 3}) + "\n" for i in range(20)))
    with pytest.raises(InputError, match="data.task='cola': the labels are fractions; the task needs classes"):
        prepare(experiment(place, f"data.source={path}", task="cola"))


def test_a_tokenizer_without_padding_is_refused_for_classes_and_taken_for_language(place):
    with pytest.raises(InputError, match="no padding token; name one of its tokens with model.pad_token, such as </s>"):
        prepare(experiment(place, kind="unpadded"))
    assert prepare(experiment(place, "model.pad_token=</s>", kind="unpadded")).task.form.pad == 2
    prepare(experiment(place, kind="unpadded", task="causal-lm"))


@pytest.mark.parametrize(("kind", "count"), [("roberta", r"50,2\d\d"), ("bert", r"\d")])
def test_a_tokenizer_of_another_model_is_refused(place, kind, count):
    other = need(SHARED / "roberta-tokenizer")
    with pytest.raises(InputError, match=f"its tokenizer has {count} tokens, the model 302"):
        prepare(experiment(place, f"model.tokenizer={other}", kind=kind))
