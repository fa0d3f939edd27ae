"""`fedadamw generate`: answers of a trained language model beside those of the model that it was trained from."""

import json
import warnings

import pytest
import torch
from support import tiny_models
from support.gguf_files import write_gguf
from support.trained_texts import TARGETS, run

from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained

ROWS = [{"q": f"was the {word} good", "a": "very good"} for word in ("film", "plot", "cast", "film") * 6]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A folder with questions and a language model, as a folder and as a file."""
    path = tmp_path_factory.mktemp("chats")
    tiny_models.folder(path / "chat", "llama", template=tiny_models.TEMPLATE)
    write_gguf(path / "chat", path / "chat.gguf")
    (path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def settings_of(chats, *more, model="chat.gguf"):
    return [
        "data.task=causal-lm",
        f"data.source={chats / 'talk.jsonl'}",
        "data.validation=0.2",
        "data.prompt='{q}?'",
        "data.response='{a}'",
        f"model={chats / model}",
        "partition={kind: iid, clients: 4}",
        "training={rounds: 4, clients_per_round: 4, steps: 6, batch_size: 8, lr: 0.03}",
        "device=cpu",
        *more,
    ]


ADAPTERS = (f"lora.target_modules={TARGETS['llama']}", "lora.r=4")


@pytest.fixture(scope="module")
def tuned(chats, tmp_path_factory):
    return run(tmp_path_factory.mktemp("tuned") / "run", settings_of(chats, *ADAPTERS))[0].path


def answers(done) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_file_gives_lines_of_json_with_both_models_and_the_right_answer(run_main, tuned, chats, tmp_path):
    found = answers(run_main("generate", str(tuned), "--data", str(chats / "talk.jsonl"), "--max-tokens", "5"))
    assert len(found) == len(ROWS)
    assert found[0]["prompt"] == "was the film good?"
    assert list(found[0]) == ["file", "row", "prompt", "base", "tuned", "right"]
    assert {row["right"] for row in found} == {"very good"}
    assert {row["tuned"] for row in found} == {"very good"} != {row["base"] for row in found}
    out = tmp_path / "answers.jsonl"
    done = run_main("generate", str(tuned), "--data", str(chats / "talk.jsonl"), "--max-tokens", "5", "--out", str(out))
    assert done.stdout == f"{out}: 24 answers\n"
    assert [json.loads(line) for line in out.read_text().splitlines()] == found


def test_prompts_of_the_command_line_are_taken_as_they_are(run_main, tuned):
    done = run_main(
        "generate", str(tuned), "--prompt", "was the film good?", "--prompt", "a {q}\x1b", "--max-tokens", "4"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:1].strip()] == ["prompt", "base", "tuned"] * 2
    assert lines[0] == "prompt  was the film good?"
    assert "tuned   very good" in lines
    assert r"prompt  a {q}\x1b" in lines
    alone = run_main("generate", str(tuned), "--prompt", "was the film good?", "--max-tokens", "4", "--no-base")
    assert alone.stdout == "prompt  was the film good?\ntuned   very good\n"


def test_a_line_of_text_fills_a_template_of_one_column(run_main, tuned, tmp_path):
    (tmp_path / "ask.txt").write_text("was the cast good\n\nwas it\n")
    (tmp_path / "gaps.csv").write_text("q,n\nwas it,1\n,2\n")
    skipping = ("--data", str(tmp_path / "gaps.csv"), "--on-bad", "skip", "--max-tokens", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        left = run_main("generate", str(tuned), *skipping)
    assert [row["row"] for row in answers(left)] == [1]
    assert "row 2: column 'q' holds None where a text, a number or a class is expected; left out" in left.stderr
    found = answers(run_main("generate", str(tuned), "--data", str(tmp_path / "ask.txt"), "--max-tokens", "3"))
    assert [(row["row"], row["prompt"]) for row in found] == [(1, "was the cast good?"), (3, "was it?")]
    predicted = run_main("predict", str(tuned), str(tmp_path / "ask.txt"), "--max-new-tokens", "3")
    assert all(" ".join(row["tuned"].split()) in predicted.stdout for row in found)


def test_the_base_is_the_model_before_its_training(run_main, tuned, chats, tmp_path):
    """With adapters switched off, and rebuilt where all of the model or its base has changed."""
    ask = ("--prompt", "was the film good?", "--max-tokens", "6")

    def base_of(folder):
        done = run_main("generate", str(folder), *ask)
        return [line for line in done.stdout.splitlines() if line.startswith("base")], done.stderr

    expected = base_of(tuned)[0]
    for name, more in (("whole", ()), ("exact", (*ADAPTERS, "lora.aggregate=exact"))):
        folder, _ = run(tmp_path / name, settings_of(chats, *more))
        assert base_of(folder.path)[0] == expected
    export(open_run(tuned), tmp_path / "adapter")
    assert base_of(tmp_path / "adapter")[0] == expected
    export(open_run(tuned), tmp_path / "merged", merged=True)
    assert base_of(tmp_path / "merged") == (
        [],
        "the model before its training is not asked: this folder holds only the trained model\n",
    )


def test_an_export_of_a_run_on_a_file_needs_the_file_or_nothing(tuned, chats, tmp_path):
    export(open_run(tuned), tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "gguf_file='chat.gguf'" in card
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"].endswith(
        "chat.gguf"
    )
    export(open_run(tuned), tmp_path / "merged", merged=True)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    own = open_trained(tmp_path / "adapter").model.merge_and_unload().eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged")("the film was", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, own(ids).logits, atol=1e-5)
    assert not (tmp_path / "merged" / "chat.gguf").exists()


def test_another_run_starts_from_one_on_a_file(tuned, chats, tmp_path):
    folder, _ = run(tmp_path / "more", settings_of(chats, "training.lr=1e-9", model=tuned))
    first, last = (open_run(path).model.eval() for path in (tuned, folder.path))
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(first(ids).logits, last(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "error: give --prompt or --data"),
        (("--prompt", "a", "--data", "b"), "error: give --prompt or --data"),
        (("--prompt", " "), "error: --prompt: is blank"),
        (("--prompt", "a", "--out", "a.jsonl"), "error: --out: is for --data"),
        (("--data", "missing.csv"), "error: missing.csv: no such file or folder"),
        (("--data", "missing.csv", "--out", "a.csv"), "error: --out a.csv: must end in .jsonl"),
        (("--prompt", "a", "--max-tokens", "64"), "error: --max-tokens=64: the model takes 64 tokens, prompt included"),
    ],
)
def test_what_cannot_be_answered_is_one_line(run_main, tuned, options, says):
    done = run_main("generate", str(tuned), *options)
    assert (done.returncode, done.stderr) == (2, f"{says}\n")


def test_any_language_model_answers(run_main, chats):
    ask = ("--prompt", "was it", "--max-tokens", "4")
    folder, file = (run_main("generate", str(chats / name), *ask) for name in ("chat", "chat.gguf"))
    assert folder.stdout.startswith("prompt  was it\nanswer  ")
    assert (folder.stdout, folder.stderr) == (file.stdout, file.stderr)
    (chats / "ask.txt").write_text("was it\n")
    predicted = run_main("predict", str(chats / "chat.gguf"), str(chats / "ask.txt"), "--max-new-tokens", "4")
    assert folder.stdout.split()[4] in predicted.stdout
    data = ("-s", "data.prompt='{q}?'", "-s", "data.response='{a}'", "-s", "data.metrics=exact-match")
    done = run_main("eval", str(chats / "chat.gguf"), "--data", str(chats / "talk.jsonl"), "--split", "train", *data)
    assert "exact-match       0.00%" in done.stdout


def test_a_classifier_answers_nothing(run_main, trained):
    done = run_main("generate", str(trained.path), "--prompt", "a")
    assert (
        done.stderr
        == f"error: {trained.path}: was trained for data.task=text; only a causal-lm model answers prompts\n"
    )
