"""Plans of language models: activations as autograd saves them, layers that add up, refusals before loading."""

import pytest
import torch
from support import tiny_models

from fedadamw.engine.workspace import autocast
from fedadamw.plan.bound import bound
from fedadamw.plan.data_shape import find_shape
from fedadamw.plan.plan import make_plan
from fedadamw.plan.pretended import build_problem
from fedadamw.plan.refusal import describe_verdict
from fedadamw.plan.rehearsal import _rehearse, rehearse
from fedadamw.plan.room import Room
from fedadamw.settings.load import load

CPU = torch.device("cpu")
BASE = ["data.task=causal-lm", "data.source=./none.csv", "data.max_length=48", "training.batch_size=3", "device=cpu"]


@pytest.fixture
def folder(tmp_path):
    """Returns folder(layers): a Llama's configuration."""

    def make(layers=2):
        config = tiny_models.config("llama")
        config.num_hidden_layers = layers
        config.save_pretrained(tmp_path)
        return tmp_path

    return make


def experiment(place, *settings):
    return load("digits", [*BASE, f"model={place}", "lora.r=2", "lora.dropout=0", *settings])


def saved_on_a_cpu(experiment):
    """Bytes of the storages that a real forward pass keeps for backward, without the model's own."""
    problem = build_problem(experiment, find_shape(experiment))
    model = problem.model.to_empty(device="cpu").train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    batch = problem.task.batch(torch.arange(3), torch.empty(3, 0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(experiment.training, CPU):
        losses = problem.task.losses(model, batch)
    inputs = {t.untyped_storage().data_ptr() for t in batch}
    assert losses.requires_grad
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own | inputs)


@pytest.mark.parametrize("settings", [[], ["training.precision=bf16"]], ids=["float32", "bf16"])
def test_activations_are_those_that_autograd_saves_on_a_cpu_and_what_the_model_returns(folder, settings):
    given = experiment(folder(), *settings)
    saved = saved_on_a_cpu(given)
    assert saved <= rehearse(given, find_shape(given), CPU).counts.saved <= 1.2 * saved


@pytest.mark.slow
def test_layers_left_out_are_added_byte_by_byte(folder):
    given = experiment(folder(10), "training.gradient_checkpointing=true")
    data = find_shape(given)
    part, whole = rehearse(given, data, CPU), _rehearse(given, data, CPU, 1, None)
    assert (part.trained, part.frozen, part.counts.tensors) == (whole.trained, whole.frozen, whole.counts.tensors)


@pytest.mark.slow
def test_checkpointing_and_half_types_need_less_and_the_quick_bound_is_above_all(folder):
    place = folder(6)
    plans = [make_plan(experiment(place, *s)) for s in ([], ["training.gradient_checkpointing=true"])]
    assert plans[1].counts.tensors < plans[0].counts.tensors
    assert bound(experiment(place)) > plans[0].peak


def test_written_answers_need_their_keys_and_values(folder):
    place = folder()
    config = tiny_models.config("llama")
    asked = ["data.metrics=[exact-match]", "data.answer_tokens=16"]
    plain, answering = (make_plan(experiment(place, *more)) for more in ([], asked))
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    of_a_token = 2 * 2 * heads * width * 4  # keys and values of two layers, in float32
    assert answering.phases["answers"]["keys and values"] == 3 * (48 + 16) * of_a_token
    assert "answers" not in plain.phases


def test_no_change_is_looked_for_where_no_weights_could_fit(folder, monkeypatch):
    plan = make_plan(experiment(folder()), room=Room(CPU, "cpu", 10**4, 10**4, 0))
    monkeypatch.setattr("fedadamw.plan.advice.make_plan", None)
    assert describe_verdict(plan).endswith("0.00 GB free: take a smaller model or a larger device")


def test_a_run_that_cannot_fit_is_refused_before_its_data_are_looked_for(folder, run_main, monkeypatch):
    place = folder()
    monkeypatch.setattr("fedadamw.plan.room.free_bytes", lambda: 10**6)
    monkeypatch.setattr("fedadamw.plan.room.used_bytes", lambda: 0)
    settings = [f"model={place}", "lora.r=2", *BASE]
    given = [word for setting in settings for word in ("-s", setting)]
    refused = run_main("run", "digits", *given)
    assert refused.returncode == 2
    assert "training.micro_batch=1" in refused.stderr
    assert refused.stderr.strip().endswith("--force runs it all the same")
    assert "data.source" in run_main("run", "digits", *given, "--force").stderr
