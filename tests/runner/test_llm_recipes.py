"""The recipes of large language models, on small stand-ins for model and data: each prepares and trains."""

import json

import pytest
from support import tiny_models

from fedadamw.plan.plan import make_plan
from fedadamw.plan.room import find_room
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.settings.recipes import list_recipes, read_recipe_text

LLM = [name for name in list_recipes() if name.startswith(("llm/", "flowertune/"))]
FEW = (
    "partition.clients=4",
    "training.clients_per_round=2",
    "training.rounds=1",
    "training.steps=1",
    "training.batch_size=2",
    "training.evaluate_batch=4",
    "data.max_length=60",
    "data.max_test=4",
    "data.validation=0.2",
    "device=cpu",
    "threads=1",
)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A llama with a chat template, and rows as the data sets on the hub have them."""
    path = tmp_path_factory.mktemp("llm")
    tiny_models.folder(path / "chat", "llama", tiny_models.WIDE, template=tiny_models.TEMPLATE)
    rows = [{"instruction": f"a film {i}", "input": "the plot", "output": "good"} for i in range(24)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_trains(recipe, stand_in, folder, *, planned=False):
    data = (f"model={stand_in / 'chat'}", f"data.source={stand_in / 'rows.jsonl'}")
    template = load(recipe).data.prompt
    short = () if template is None else (f"data.prompt='{template[template.index('{') :].splitlines()[0]}'",)
    experiment, out = load(recipe, [*FEW, *data, *short]), RunFolder(folder / "run")
    if planned:  # with fake tensors, which leave nothing behind
        assert make_plan(experiment, ranks=1, room=find_room(experiment, 24)).fits
    execute(experiment, out, resume=False, report=False)
    (record,) = out.records()
    assert record["train_loss"] > 0
    assert record["test_metrics"]["perplexity"] > 0


@pytest.mark.parametrize("recipe", ["llm/qwen3-8b-24gb", "flowertune/finance"])
def test_a_recipe_trains_a_stand_in(recipe, stand_in, tmp_path):
    assert_trains(recipe, stand_in, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LLM)
def test_every_recipe_trains_a_stand_in_after_its_plan(recipe, stand_in, tmp_path):
    assert_trains(recipe, stand_in, tmp_path, planned=True)


def test_there_is_a_recipe_for_each_size_and_card():
    models = ("qwen3-0.6b", "qwen3-4b", "qwen3-8b", "llama-3.2-1b", "llama-3.2-3b", "smollm2-1.7b")
    cards = {f"llm/{model}-{card}gb" for model in models for card in (24, 80)}
    assert set(LLM) == cards | {f"flowertune/{task}" for task in ("general", "finance", "medical", "code")}
    for name in cards:
        assert f"with {name.rpartition('-')[2].removesuffix('gb')} GB" in read_recipe_text(name).splitlines()[0]


def test_flowertunes_budget():
    """As its baselines have it: clients, clients a round, rounds, steps, batch, adapters."""
    clients = {"general": (20, 2), "finance": (50, 5), "medical": (20, 2), "code": (10, 2)}
    for task, counts in clients.items():
        e = load(f"flowertune/{task}")
        t = e.training
        assert (e.partition.kind, e.partition.clients, t.clients_per_round) == ("iid", *counts)
        assert (t.rounds, t.steps, t.batch_size, t.lr, t.schedule) == (200, 10, 16, 5e-5, "cosine")
        assert (e.lora.r, e.lora.alpha, e.lora.dropout) == (32, 64, 0.075)
        assert (e.data.max_length, e.model.quantize) == (512, "4bit")
        assert load(f"flowertune/{task}", ["algorithm=local-adamw"]).algorithm["weight_decay"] == 0.0
