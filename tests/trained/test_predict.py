"""Predictions of new samples: they agree with the evaluation, and what cannot be used is one clear line."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import image_files, tiny_models
from support.trained_texts import lora, run, settings_of

from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.trained.predict import predict, read_samples, skip_bad
from fedadamw.validation import InputError

ON_ERROR, ON_SKIP = [("data.on_bad", "error")], [("data.on_bad", "skip")]


def predict_all(folder, *files, overrides=ON_ERROR, change=lambda trained: trained, **options):
    trained = change(open_trained(folder, overrides))
    return list(predict(trained, read_samples(trained, [str(file) for file in files]), **options))


def digits(folder):
    """The held-out digits as files, each named after its class, in the order of the evaluation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir()
    for i in range(0, len(digits.target), 5):
        pixels = (digits.images[i] * (255 / 16)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:04}-{digits.target[i]}.png")
    return folder


def test_predictions_of_images_agree_with_the_evaluation(finished_run, tmp_path):
    found = predict_all(finished_run, digits(tmp_path / "digits"))
    right = [prediction.label == prediction.file[-5] for prediction in found]
    evaluation, count = evaluate(open_trained(finished_run, []))
    assert (len(found), sum(right) / count) == (360, pytest.approx(evaluation.metrics["accuracy"], abs=1e-12))
    assert all(sum(p.probabilities.values()) == pytest.approx(1) for p in found)
    assert all(list(p.probabilities.values()) == sorted(p.probabilities.values(), reverse=True) for p in found)


def test_a_table_with_paths_or_with_images_gives_the_same_predictions(finished_run, tmp_path):
    import datasets

    files = sorted(digits(tmp_path / "digits").iterdir())[:7]
    (tmp_path / "list.csv").write_text("who,file\n" + "".join(f"a,digits/{file.name}\n" for file in files))
    cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
    datasets.Dataset.from_dict({"picture": cells}, features=datasets.Features(picture=datasets.Image())).to_parquet(
        tmp_path / "table.parquet"
    )
    expected = [p.probabilities for p in predict_all(finished_run, *files)]
    found = predict_all(finished_run, tmp_path / "list.csv", tmp_path / "table.parquet")
    assert [p.probabilities for p in found] == expected * 2
    assert [p.row for p in found] == [*range(1, 8)] * 2


@pytest.mark.parametrize("exported", [False, True])
def test_predictions_of_texts_agree_with_the_evaluation(place, trained, tmp_path, exported):
    where = trained.path
    if exported:
        export(open_run(where), tmp_path / "out")
        where = tmp_path / "out"
    found = predict_all(where, place / "more.csv")
    rows = list(csv.DictReader((place / "more.csv").read_text().splitlines()))
    assert [p.texts for p in found] == [(row["text"],) for row in rows]
    accuracy = np.mean([p.label == row["label"] for p, row in zip(found, rows, strict=True)])
    assert accuracy == evaluate(open_trained(trained.path, []))[0].metrics["accuracy"]
    (tmp_path / "lines.txt").write_text("\n".join(["", *(row["text"] for row in rows), ""]))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    (tmp_path / "ROWS.CSV").write_text((place / "more.csv").read_text())
    (tmp_path / "LINES.TXT").write_text((tmp_path / "lines.txt").read_text())
    for name in ("lines.txt", "rows.jsonl", "ROWS.CSV", "LINES.TXT"):
        again = predict_all(where, tmp_path / name)
        assert [p.label for p in again] == [p.label for p in found]
        assert [p.row for p in again] == list(range(2, 32) if name.lower() == "lines.txt" else range(1, 31))


def test_pairs_and_numbers(place, tmp_path, run_main):
    settings = settings_of(place, "bert", "stsb", "data.test_source=null", "data.validation=0.2")
    rows = [f"good film {i},a fine plot {i},{i / 7:.2f}\n" for i in range(40)]
    (tmp_path / "pairs.csv").write_text("sentence1,sentence2,label\n" + "".join(rows))
    folder, _ = run(tmp_path / "run", [*settings, f"data.source={tmp_path / 'pairs.csv'}"])
    found = predict_all(folder.path, tmp_path / "pairs.csv")
    assert found[3].texts == ("good film 3", "a fine plot 3")
    trained = open_trained(folder.path, [])
    with torch.no_grad():
        batch = trained.pretrained.tokenizer("good film 3", "a fine plot 3", return_tensors="pt")
        batch.pop("token_type_ids", None)
        expected = float(trained.model.eval()(**batch).logits)
    assert found[3].number == pytest.approx(expected, abs=1e-5)
    done = run_main("predict", str(folder.path), str(tmp_path / "pairs.csv"), "--top", "2")
    assert done.stderr == f"error: --top: the model of {folder.path} predicts no classes\n"
    (tmp_path / "lines.txt").write_text("good film\n")
    with pytest.raises(InputError, match=r"lines.txt: this model takes pairs of texts: give a table with both"):
        predict_all(folder.path, tmp_path / "lines.txt")
    (tmp_path / "half.csv").write_text("sentence1,other\na,b\n")
    with pytest.raises(InputError, match=r"half.csv has no column 'sentence2'; it has sentence1, other"):
        predict_all(folder.path, tmp_path / "half.csv")


def greedy(model, ids, end, new):
    """The likeliest next token, one after the other."""
    out = list(ids)
    for _ in range(new):
        with torch.no_grad():
            out.append(int(model(input_ids=torch.tensor([out])).logits[0, -1].argmax()))
        if out[-1] == end:
            break
    return out[len(ids) :]


@pytest.mark.parametrize("adapters", [False, True])
def test_a_language_model_responds_to_prompts(place, tmp_path, adapters):
    with open(tmp_path / "talk.csv", "w") as file:
        file.write("prompt,response\n" + "".join(f"it was {'a ' * (i % 5)}good,very fine film\n" for i in range(24)))
    settings = settings_of(place, "llama", "causal-lm", *(lora("llama", "factors") if adapters else []))
    settings += [f"data.source={tmp_path / 'talk.csv'}", "data.test_source=null", "data.validation=0.2"]
    folder, _ = run(tmp_path / "run", settings)
    assert folder.read_manifest()["data"]["prompts"] is True
    (tmp_path / "ask.txt").write_text("it was a a good\ngood\nwas it very very very very very dull\n")
    found = predict_all(folder.path, tmp_path / "ask.txt", max_new_tokens=6)
    trained = open_trained(folder.path, [])
    model, words = trained.model.eval(), trained.pretrained.tokenizer
    for prediction in found:
        ids = words(prediction.texts[0] + "\n")["input_ids"]
        expected = words.decode(greedy(model, ids, words.eos_token_id, 6), skip_special_tokens=True)
        assert prediction.response == expected, "padding changes no response"
    table = predict_all(folder.path, tmp_path / "talk.csv", max_new_tokens=6)
    assert [p.texts[0] for p in table[:2]] == ["it was good", "it was a good"]
    with pytest.raises(InputError, match=r"ask.txt, row 1: has \d+ tokens, and with 60 new ones the model takes 64"):
        predict_all(folder.path, tmp_path / "ask.txt", max_new_tokens=60)
    with pytest.raises(InputError, match="--max-new-tokens=64: the model takes 64 tokens, prompt included"):
        predict_all(folder.path, tmp_path / "ask.txt", max_new_tokens=64)


def test_conversations_are_answered_in_the_chat_template(place, tmp_path):
    tiny_models.folder(tmp_path / "chat", "llama", template=tiny_models.TEMPLATE)
    talk = [{"role": "user", "content": "it was"}, {"role": "assistant", "content": "a good film"}]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for _ in range(12)))
    settings = settings_of(place, "llama", "causal-lm")
    settings += [f"model={tmp_path / 'chat'}", f"data.source={tmp_path / 'talk.jsonl'}"]
    folder, _ = run(tmp_path / "run", [*settings, "data.test_source=null", "data.validation=0.2"])
    trained = open_trained(folder.path, [])
    words = trained.pretrained.tokenizer
    ids = words("<user>it was</s><assistant>", add_special_tokens=False)["input_ids"]
    expected = words.decode(greedy(trained.model.eval(), ids, words.eos_token_id, 5), skip_special_tokens=True)
    (tmp_path / "ask.txt").write_text("it was\n")
    for file in ("talk.jsonl", "ask.txt"):
        assert predict_all(folder.path, tmp_path / file, max_new_tokens=5)[0].response == expected


def test_whole_texts_are_continued(place, tmp_path):
    folder, _ = run(tmp_path / "run", settings_of(place, "llama", "causal-lm", "data.text_column=text"))
    assert folder.read_manifest()["data"]["prompts"] is False
    trained = open_trained(folder.path, [])
    words = trained.pretrained.tokenizer
    expected = greedy(trained.model.eval(), words("it was a")["input_ids"], words.eos_token_id, 5)
    (tmp_path / "begin.txt").write_text("it was a\n")
    found = predict_all(folder.path, tmp_path / "begin.txt", max_new_tokens=5)[0]
    assert found.response == words.decode(expected, skip_special_tokens=True)


def test_samples_that_cannot_be_used_are_an_error_or_left_out(finished_run, trained, tmp_path):
    good, bad = tmp_path / "a.png", tmp_path / "b.png"
    image_files.noise(8, 8, 1).save(good)
    bad.write_bytes(image_files.truncated(image_files.noise(64, 64, 1)))
    with pytest.raises(InputError, match=r"b.png: .*truncated.*; repair or remove it, or use --on-bad skip"):
        predict_all(finished_run, tmp_path)
    with pytest.warns(UserWarning, match=r"b.png: .*; left out"):
        assert [p.file for p in predict_all(finished_run, tmp_path, overrides=ON_SKIP)] == [str(good)]
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(InputError, match="none of the 1 samples can be used"),
    ):
        predict_all(finished_run, bad, overrides=ON_SKIP)
    (tmp_path / "gaps.csv").write_text("text,n\ngood film,1\n,2\n")
    with pytest.raises(InputError, match=r"gaps.csv, row 2: holds None where a text is expected"):
        predict_all(trained.path, tmp_path / "gaps.csv")
    with pytest.warns(UserWarning, match="row 2: holds None where a text is expected; left out"):
        assert [p.row for p in predict_all(trained.path, tmp_path / "gaps.csv", change=skip_bad)] == [1]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("empty.png", b"", "empty.png: the file is empty"),
        ("notes.doc", b"x", "a file for this model must end in .csv, .json, .jsonl, .parquet, .png"),
        ("table.csv", b"a,b\n1,2\n", "no image column among a, b; name it: -s data.image_column=NAME"),
        ("gone.csv", b"file\nnowhere.png\n", r"gone.csv, row 1: .*No such file"),
        ("folder", None, "folder: the folder holds no file that ends in .csv"),
        ("nowhere", None, "nowhere: no such file or folder"),
    ],
)
def test_files_that_cannot_be_used_are_one_clear_line(finished_run, tmp_path, name, content, line):
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line):
        predict_all(finished_run, tmp_path / name)


def test_the_command_writes_a_new_file_or_none(finished_run, tmp_path, run_main):
    image_files.noise(8, 8, 1).save(tmp_path / "a.png")
    out = tmp_path / "p.csv"
    done = run_main("predict", str(finished_run), str(tmp_path / "a.png"), "--out", str(out), "--probabilities")
    assert (done.returncode, done.stdout) == (0, f"{out}: 1 predictions\n"), done.stderr
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert list(row)[:4] == ["file", "row", "label", "probability"]
    assert row["probability"] == row[f"p({row['label']})"]
    again = run_main("predict", str(finished_run), str(tmp_path / "a.png"), "--out", str(out))
    assert (again.returncode, again.stderr) == (2, f"error: --out {out}: exists; choose another file\n")
    (tmp_path / "b.png").write_bytes(b"no image")
    failed = run_main("predict", str(finished_run), str(tmp_path), "--out", str(tmp_path / "q.jsonl"))
    assert failed.returncode == 2
    assert not list(tmp_path.glob("q.jsonl*"))
    shown = run_main("predict", str(finished_run), str(tmp_path / "a.png"), "--top", "2")
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["sample", f"{tmp_path}/a.png"]
    assert shown.stdout.split()[1:5] == ["label", "probability", "label2", "probability2"]
