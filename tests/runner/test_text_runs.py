"""Runs on texts as a user starts them: recipes, ranks, resuming, studies."""

import json
import shutil

import pytest
from support import tiny_models
from support.checkout import SHARED, need
from support.command import run_command

from fedadamw.settings.load import load
from fedadamw.settings.recipes import list_recipes

SHORT = ["-s", "training.rounds=2", "-s", "training.steps=2", "-s", "training.batch_size=4", "-s", "device=cpu"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A small RoBERTa with RoBERTa's own tokenizer."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    words = need(SHARED / "roberta-tokenizer")
    folder = tmp_path_factory.mktemp("roberta")
    config = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1, **tiny_models.SIZES)
    RobertaForMaskedLM(config).save_pretrained(folder)
    for file in words.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sst2", "mrpc"])
def test_the_published_recipe_takes_any_folder_with_a_roberta(roberta, tmp_path, task):
    data = need(SHARED / f"glue-{task}")
    out = tmp_path / "run"
    recipe = [f"paper/glue-{task}", "-s", f"model={roberta}", "-s", f"data.source={data}", "-s", "data.max_test=50"]
    done = run_command("run", *recipe, *SHORT, "--ranks", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert next(iter(records[-1]["test_metrics"])) == ("f1" if task == "mrpc" else "accuracy")
    assert ("F1" if task == "mrpc" else "accuracy") in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["data"]["classes"] == (
        ["not_equivalent", "equivalent"] if task == "mrpc" else ["negative", "positive"]
    )
    assert (out / "report.html").is_file()


def test_the_published_settings():
    tasks = {name.removeprefix("paper/glue-") for name in list_recipes() if name.startswith("paper/glue-")}
    assert tasks == {"sst2", "rte", "mrpc", "cola", "qnli", "qqp", "mnli", "stsb", "wnli"}
    for task in tasks:
        e = load(f"paper/glue-{task}")
        t, lora = e.training, e.lora
        assert (e.data.task, e.partition.clients, e.partition.concentration) == (task, 20, 0.8)
        assert (t.clients_per_round, t.lr, t.batch_size, t.steps, t.rounds) == (4, 2e-4, 16, 50, 100)
        assert (lora.r, lora.alpha, lora.dropout) == (16, 32, 0.05)
        assert lora.target_modules == ("query", "key", "value", "dense")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    tiny_models.folder(path / "bert", "bert")
    tiny_models.reviews(path / "reviews.csv")
    (path / "own.yaml").write_text(f"""
data: {{task: text, source: {path / "reviews.csv"}, validation: 0.2}}
partition: {{kind: iid, clients: 4}}
model: {{name: {path / "bert"}}}
lora: {{r: 4, dropout: 0, target_modules: [query, value], aggregate: exact}}
training: {{rounds: 4, clients_per_round: 3, steps: 2, batch_size: 4, lr: 0.01}}
checkpoint_every: 1
device: cpu
""")
    return path


def run(place, out, *more) -> list[dict]:
    done = run_command("run", str(place / "own.yaml"), "--out", str(out), *more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["lora.aggregate=exact"],
        ["lora.aggregate=residual", "lora.ranks=[1, 4, 2, 4]"],
        ["lora.aggregate=alternate", "algorithm=scaffold", "client_memory=disk"],
    ],
    ids=["exact", "unequal-residual", "alternate"],
)
def test_two_ranks_with_adapters_come_to_the_numbers_of_one(place, tmp_path, more):
    given = [word for setting in more for word in ("-s", setting)]
    one, two = (
        run(place, tmp_path / "one", "--ranks", "1", *given),
        run(place, tmp_path / "two", "--ranks", "2", *given),
    )
    for a, b in zip(one, two, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-5)
        assert a["test_loss"] == pytest.approx(b["test_loss"], abs=1e-5)
        assert (a["up_bytes"], a["down_bytes"]) == (b["up_bytes"], b["down_bytes"])


@pytest.mark.slow
def test_algorithms_are_compared_on_texts(place, tmp_path):
    done = run_command(
        "compare", str(place / "own.yaml"), "-a", "fedadamw,scaffold", "--seeds", "2", "--out", str(tmp_path / "study")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "study" / "results.json").read_text())["metric"] == "accuracy"
