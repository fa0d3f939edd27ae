"""Evaluating runs, exports and transformers folders."""

import csv
import json

import pytest
import torch
from support.trained_texts import run, settings_of

from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError


def test_evaluation_uses_the_runs_max_test_unless_a_split_is_given(place, tmp_path):
    given = settings_of(place, "bert", "text", "data.max_test=7")
    folder, _ = run(tmp_path / "run", given)
    assert evaluate(open_trained(folder.path, []))[1] == 7
    assert evaluate(open_trained(folder.path, [("data.test_split", None)]))[1] == 30


def test_a_share_of_the_training_data_is_held_out_again(place, tmp_path):
    folder, _ = run(
        tmp_path / "run", settings_of(place, "bert", "text", "data.test_source=null", "data.validation=0.2")
    )
    found, count = evaluate(open_trained(folder.path, []))
    assert count == folder.read_manifest()["data"]["test"]["samples"] == 12
    assert found.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_a_transformers_folder_is_evaluated(place, trained, tmp_path):
    export(open_run(trained.path), tmp_path / "out", merged=True)
    (tmp_path / "out" / "fedadamw.json").unlink()
    given = [("data.task", "text"), ("data.source", str(place / "more.csv"))]
    found, _ = evaluate(open_trained(tmp_path / "out", given))
    assert found.metrics["accuracy"] == trained.records()[-1]["test_metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["export", "nowhere", "--to", "x"], "nowhere holds no run (no config.yaml)"),
        (["eval", "nowhere"], "nowhere: no such folder"),
        (["export", "nowhere", "--to", "."], "nowhere holds no run (no config.yaml)"),
        (["eval", "."], ".: neither a run's folder (no config.yaml) nor a model's (no config.json)"),
    ],
)
def test_a_missing_folder_is_one_clear_line(tmp_path, monkeypatch, run_main, arguments, line):
    monkeypatch.chdir(tmp_path)
    done = run_main(*arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([("model.name", "other")], "model.name: would change the model; an evaluation can set data"),
        ([("lora.r", 4)], "lora.r: would change the model"),
        ([("data.task", "causal-lm")], "data.task='causal-lm': the model was trained for 'text'"),
    ],
)
def test_settings_that_would_change_the_model_are_refused(trained, given, line):
    with pytest.raises(InputError, match=line):
        open_trained(trained.path, given)


def test_max_test_limits_the_evaluated_samples(place, trained):
    given = [("data.source", str(place / "more.csv")), ("data.max_test", 11)]
    assert evaluate(open_trained(trained.path, given))[1] == 11


def test_a_model_without_a_trained_head_is_not_evaluated(place):
    given = [("data.task", "text"), ("data.source", str(place / "more.csv"))]
    with pytest.raises(
        InputError, match=r"has no trained weights of .*classifier.*; it is not a model for data.task=text"
    ):
        open_trained(place / "bert", given)


def test_two_classes_without_names_are_evaluated(place, tmp_path):
    """transformers writes no names into config.json where there are two, and they have none."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(place / "bert").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    given = [("data.task", "text"), ("data.source", str(place / "more.csv"))]
    found = open_trained(tmp_path, given)
    words, rows = (
        AutoTokenizer.from_pretrained(tmp_path),
        list(csv.DictReader((place / "more.csv").read_text().splitlines())),
    )
    with torch.no_grad():
        likeliest = [int(found.model.eval()(**words(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    names = sorted({row["label"] for row in rows})
    right = sum(names[i] == row["label"] for i, row in zip(likeliest, rows, strict=True)) / len(rows)
    assert evaluate(found)[0].metrics["accuracy"] == pytest.approx(right)


def test_a_transformers_regression_model_is_evaluated(place, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path)
    (tmp_path / "data.csv").write_text("text,label\ngood,1.5\nbad,0.25\nfilm,2.5\n")
    given = [("data.task", "text"), ("data.source", str(tmp_path / "data.csv"))]
    assert set(evaluate(open_trained(tmp_path, given))[0].metrics) == {"spearman", "pearson"}


def test_data_with_other_classes_than_the_run_is_refused(place, tmp_path):
    folder, _ = run(tmp_path / "run", settings_of(place))
    found = open_trained(folder.path, [])
    with pytest.raises(InputError, match="the data's classes are not those of the run"):
        evaluate(found._replace(facts={**found.facts, "classes": found.facts["classes"][::-1]}))
