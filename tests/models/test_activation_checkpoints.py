"""Gradient checkpointing: less memory, and the same bits."""

import pytest
import torch
from support import tiny_models
from torch import nn
from torch.func import functional_call, vmap

from benchmarks.common.tensor_peak import Peak
from fedadamw.engine.stacked_checkpoints import stacked_checkpoints
from fedadamw.engine.vmap_rules import batched_kernels
from fedadamw.models import vision
from fedadamw.models.activation_checkpoints import checkpoint_layers
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.prepare import texts
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.settings.lora import LoraSettings
from fedadamw.validation import InputError

KINDS = ("llama", "qwen3", "gemma2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    for kind in (*KINDS, "roberta"):
        tiny_models.folder(path / kind, kind)
    tiny_models.reviews(path / "reviews.csv")
    return path


def run(place, *settings, kind="llama", task="causal-lm", rounds=2):
    common = [
        f"data.task={task}",
        f"data.source={place / 'reviews.csv'}",
        "data.validation=0.2",
        f"model={place / kind}",
        *(["data.text_column=text"] if task == "causal-lm" else []),
        "partition={kind: iid, clients: 4}",
        f"training={{rounds: {rounds}, clients_per_round: 3, steps: 2, batch_size: 6, lr: 0.01}}",
        "device=cpu",
    ]
    sim = prepare(load("digits", [*common, *settings])).simulation()
    records = [(record.train_loss, record.test_loss) for record in sim.rounds()]
    return records, sim.state.server.x


@pytest.fixture
def double(monkeypatch):
    """Text models in float64."""
    build = texts.build_model
    monkeypatch.setattr(texts, "build_model", lambda *a: (b := build(*a))._replace(model=b.model.double()))


LORA = ("lora={r: 2, dropout: 0.2, target_modules: all-linear}",)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", LORA),
        pytest.param("qwen3", LORA, marks=pytest.mark.slow),
        pytest.param("gemma2", LORA, marks=pytest.mark.slow),
        pytest.param("llama", (), marks=pytest.mark.slow),
        pytest.param("gemma2", ("training.micro_batch=4",), marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("double")
def test_no_bit_changes_in_float64(place, kind, settings):
    plain, x = run(place, *settings, kind=kind)
    again, y = run(place, *settings, "training.gradient_checkpointing=true", kind=kind)
    assert x.dtype == torch.float64
    assert again == plain
    assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", LORA),
        pytest.param("qwen3", ("training.micro_batch=4",), marks=pytest.mark.slow),
        pytest.param("gemma2", LORA, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("double")
@pytest.mark.filterwarnings("error:this model does not train stacked")
def test_no_bit_changes_for_stacked_clients(place, kind, settings):
    plain, x = run(place, *settings, "stack=3", kind=kind, rounds=1)
    again, y = run(place, *settings, "stack=3", "training.gradient_checkpointing=true", kind=kind, rounds=1)
    assert again == plain
    assert torch.equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "task"), [("llama", "causal-lm"), ("llama", "text"), ("roberta", "text")])
def test_no_bit_changes_in_float32(place, kind, task):
    adapters = LORA if kind == "llama" else ("lora={r: 2, dropout: 0.2, target_modules: [query, value]}",)
    plain, x = run(place, *adapters, kind=kind, task=task)
    again, y = run(place, *adapters, "training.gradient_checkpointing=true", kind=kind, task=task)
    assert again == plain
    assert torch.equal(x, y)


@pytest.mark.parametrize("clients", [1, 3])
def test_layers_keep_their_inputs_only(clients):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_models.config("llama"))
    model = add_adapters(model, LoraSettings(target_modules="all-linear", dropout=0.1), "CAUSAL_LM").train()
    weights = {n: p.detach().expand(clients, *p.shape) for n, p in model.named_parameters() if p.requires_grad}
    ids = torch.arange(512).view(8, 64) % 256

    def loss(weights):
        return functional_call(model, weights, (), {"input_ids": ids, "use_cache": False}).logits.sum()

    def peak():
        own = {name: t.clone().requires_grad_() for name, t in weights.items()}
        with Peak() as found:
            if clients == 1:
                losses = loss({name: t[0] for name, t in own.items()})
            else:
                with batched_kernels(), stacked_checkpoints(model):
                    losses = vmap(loss, randomness="different")(own)
            losses.sum().backward()
        return found.bytes

    plain = peak()
    checkpoint_layers(model, "tiny")
    assert peak() < 0.65 * plain


def test_a_model_without_such_layers_is_refused_by_name():
    resnet = vision.build("resnet-nano", vision.ImageShape(8, 1, 10)).model
    for model in (resnet, nn.Linear(2, 2)):
        with pytest.raises(InputError, match="training.gradient_checkpointing: 'x' has no layers that can be"):
            checkpoint_layers(model, "x")
