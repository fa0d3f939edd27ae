"""Privacy of samples for models of texts: adapters, chunked losses, checkpoints, half precision."""

import warnings

import pytest
import torch
from support import tiny_models

from fedadamw.models import output_layer
from fedadamw.prepare import texts
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load

LORA = "lora={r: 2, dropout: 0.0, target_modules: all-linear}"
SLOW = pytest.mark.slow
CHUNK = 20  # tokens whose logits are computed at once


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("private")
    for kind in ("bert", "llama"):
        tiny_models.folder(path / kind, kind)
    tiny_models.reviews(path / "reviews.csv")
    return path


@pytest.fixture
def double(monkeypatch):
    """Text models in float64."""
    build = texts.build_model
    monkeypatch.setattr(texts, "build_model", lambda *a: (b := build(*a))._replace(model=b.model.double()))


def run(place, kind, *settings, rounds=1):
    """The model after some rounds, and the warnings."""
    common = [
        f"data.task={'causal-lm' if kind == 'llama' else 'text'}",
        f"data.source={place / 'reviews.csv'}",
        "data.validation=0.2",
        f"model={place / kind}",
        *(["data.text_column=text"] if kind == "llama" else []),
        "partition={kind: iid, clients: 3}",
        f"training={{rounds: {rounds}, clients_per_round: 3, steps: 2, batch_size: 4, lr: 0.01}}",
        "privacy={clip: 0.1, noise_multiplier: 0.5}",
        "device=cpu",
    ]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sim = prepare(load("digits", [*common, *settings])).simulation()
        list(sim.rounds())
    return sim.state.server.x, [str(w.message) for w in said if "one after the other" in str(w.message)]


@pytest.mark.parametrize(
    ("kind", "lora"), [pytest.param("bert", LORA, marks=SLOW), ("llama", LORA), pytest.param("bert", None, marks=SLOW)]
)
@pytest.mark.usefixtures("double")
def test_stacked_clients_and_checkpoints_match_the_loop(place, kind, lora, monkeypatch):
    vocabulary = len(tiny_models.tokenizer())
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * vocabulary * CHUNK)
    own = [] if lora is None else [lora]
    expected, said = run(place, kind, *own)
    assert not said
    ways = [["stack=3", "training.micro_batch=2"]]
    ways += [["training.gradient_checkpointing=true"]] if kind == "llama" else []
    for way in ways:
        found, said = run(place, kind, *own, *way)
        assert not said, "by vmap, or as it was asked for"
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_with_bf16_models_of_texts_train(place):
    exact, _ = run(place, "bert", LORA)
    half, said = run(place, "bert", LORA, "training.precision=bf16")
    assert not said
    assert half.dtype == torch.float32
    assert float((half - exact).norm() / exact.norm()) < 0.05
    assert not torch.equal(half, exact)
