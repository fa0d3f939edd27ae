"""A base in 16 bits below adapters in float32: what is cast where, engines that agree, exports that keep the type."""

import json

import pytest
import torch
from safetensors import safe_open
from support import tiny_models
from support.trained_texts import logits, lora, run, settings_of
from transformers import AutoModelForMaskedLM, ViTConfig, ViTForImageClassification

from fedadamw.models.dtypes import Weights
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.text import build_language_model
from fedadamw.prepare.base import choose_weights
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

HALF = torch.bfloat16


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("half")
    for kind in ("bert", "llama", "qwen3", "gemma3"):
        tiny_models.half_folder(path / kind, kind)
    for name, rows, seed in (("reviews.csv", 60, 0), ("more.csv", 30, 1)):
        tiny_models.reviews(path / name, rows=rows, seed=seed)
    return path


def adapters(*more):
    return ["lora.target_modules=all-linear", "lora.r=4", "lora.dropout=0", *more]


def language(place, kind="llama", *more):
    return settings_of(place, kind, "causal-lm", *adapters(), "training.lr=0.02", *more)


def types_of(module):
    """The types of frozen and of trained parameters."""
    parameters = list(module.parameters())
    return tuple({p.dtype for p in parameters if p.requires_grad is wanted} for wanted in (False, True))


def test_the_type_is_that_of_the_files_if_the_base_is_frozen_and_float32_if_it_is_trained(place):
    frozen = prepare(load("digits", language(place)))
    assert types_of(frozen.workspace.module) == ({HALF}, {torch.float32})
    for more in (["lora=null"], ["lora.aggregate=exact"], ["model.dtype=float32"]):
        whole = prepare(load("digits", [*language(place), *more])).workspace.module
        assert {p.dtype for p in whole.parameters()} == {torch.float32}, more


def test_the_files_say_the_type_if_the_configuration_does_not(place, tmp_path):
    tiny_models.half_folder(tmp_path / "model", "llama", torch.float16)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "dtype"}))
    pretrained = Pretrained(str(tmp_path / "model"))
    assert pretrained.dtype == torch.float16
    assert Pretrained(str(place / "llama")).dtype == HALF
    assert choose_weights(load("digits", ["lora.r=2"]), pretrained).dtype == HALF, "small gradients vanish in float16"
    assert choose_weights(load("digits", ["lora.r=2", "model.dtype=float16"]), pretrained).dtype == torch.float16


@pytest.mark.parametrize(
    "kind", ["llama", pytest.param("qwen3", marks=pytest.mark.slow), pytest.param("gemma3", marks=pytest.mark.slow)]
)
def test_losses_fall_and_stacked_clients_come_to_the_loops_numbers(place, kind):
    settings = language(place, kind, "training.rounds=4", "training.steps=5")
    loop, stacked = (prepare(load("digits", [*settings, f"stack={s}"])).simulation() for s in (1, 2))
    before, loop, stacked = loop.evaluate().loss, list(loop.rounds()), list(stacked.rounds())
    assert loop[-1].test_loss < before - 0.15
    for ours, theirs in zip(stacked, loop, strict=True):
        assert ours.test_loss == pytest.approx(theirs.test_loss, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("stack", [1, 2])
def test_losses_fall_in_autocast_too(place, kind, stack):
    settings = language(place, kind, "training.precision=bf16", "training.rounds=4", "training.steps=5")
    simulation = prepare(load("digits", [*settings, f"stack={stack}"])).simulation()
    before = simulation.evaluate().loss
    assert list(simulation.rounds())[-1].test_loss < before - 0.15


@pytest.mark.parametrize("precision", ["float32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_head_and_fresh_modules_inside_the_base_train_in_float32(place, tmp_path, precision):
    without_pooler = AutoModelForMaskedLM.from_pretrained(tiny_models.half_folder(tmp_path / "bert", "bert"))
    without_pooler.save_pretrained(tmp_path / "bert")
    more = (f"model={tmp_path / 'bert'}", f"training.precision={precision}", "data.test_source=null")
    prepared = prepare(load("digits", settings_of(place, "bert", "text", *adapters(), *more, "data.validation=0.2")))
    module = prepared.workspace.module
    assert types_of(module) == ({HALF}, {torch.float32})
    assert any("pooler.dense.modules_to_save" in name for name, p in module.named_parameters() if p.requires_grad)
    assert all(0 < record.test_loss < 2 for record in prepared.simulation().rounds())


@pytest.mark.slow
def test_an_image_classifier_in_16_bits_takes_pixels(tmp_path):
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 1}
    config = ViTConfig(**shape, num_attention_heads=2, intermediate_size=32, num_labels=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).to(HALF).save_pretrained(tmp_path / "vit")
    rounds = ["training.rounds=2", "training.steps=3", "training.clients_per_round=2", "device=cpu"]
    settings = [f"model={tmp_path / 'vit'}", *adapters(), *rounds]
    folder, _ = run(tmp_path / "run", settings)
    assert folder.read_manifest()["model"]["dtype"] == "bfloat16"
    last = folder.records()[-1]["test_loss"]
    assert evaluate(open_trained(folder.path))[0].loss == pytest.approx(last, rel=1e-6)
    for merged in (False, True):
        to = tmp_path / f"export-{merged}"
        export(open_run(folder.path), to, merged=merged)
        assert evaluate(open_trained(to))[0].loss == pytest.approx(last, rel=0.02)
    own = prepare(load("digits", [*settings, "model=vit-micro", "model.dtype=bf16", "model.depth=1"]))
    assert types_of(own.workspace.module) == ({HALF}, {torch.float32})
    assert next(own.simulation().rounds()).train_loss > 0


@pytest.mark.parametrize("kind", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_exports_keep_the_type_of_the_base(place, tmp_path, kind):
    task = "causal-lm" if kind == "llama" else "text"
    folder, simulation = run(tmp_path / "run", [*settings_of(place, kind, task, *lora(kind, "factors"))])
    expected = logits(simulation.workspace.module, simulation)
    export(open_run(folder.path), tmp_path / "adapter")
    assert torch.equal(logits(open_trained(tmp_path / "adapter").model, simulation), expected)
    export(open_run(folder.path), tmp_path / "whole", merged=True)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "bfloat16"
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    whole = open_trained(tmp_path / "whole").model
    assert {p.dtype for p in whole.parameters()} == {HALF}
    torch.testing.assert_close(logits(whole, simulation).float(), expected.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("aggregate", ["exact", pytest.param("residual", marks=pytest.mark.slow)])
def test_what_a_round_adds_to_a_base_in_16_bits_is_kept_in_float32(place, aggregate):
    settings = [*language(place), f"lora.aggregate={aggregate}", "model.dtype=bf16", "training.rounds=3"]
    simulation = prepare(load("digits", settings)).simulation()
    assert simulation.state.base.dtype == torch.float32
    before = simulation.state.base.clone()
    assert all(record.test_loss < 6 for record in simulation.rounds())
    after = simulation.state.base
    assert not torch.equal(after, before)
    assert not torch.equal(after, after.to(HALF).float()), "finer than the base's own type"
    layer = simulation.workspace.module.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    simulation.load()
    assert layer.weight.dtype == HALF
    assert torch.equal(layer.weight.flatten(), after[: layer.weight.numel()].to(HALF))


@pytest.mark.slow
def test_a_run_starts_from_one_with_a_base_in_16_bits(place, tmp_path):
    settings = language(place)
    folder, _ = run(tmp_path / "old", settings)
    last = folder.records()[-1]["test_loss"]
    begin = [*settings, f"model={folder.path}"]
    adapted = prepare(load("digits", begin))
    assert types_of(adapted.workspace.module) == ({HALF}, {torch.float32})
    assert adapted.simulation().evaluate().loss == pytest.approx(last, rel=0.02)
    whole = prepare(load("digits", [*begin, "lora=null"]))
    assert types_of(whole.workspace.module) == (set(), {torch.float32})
    assert whole.simulation().evaluate().loss == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.dtype=bfloat16"], "what is trained stays float32; train adapters .* training.precision=bf16 instead"),
        (["model.dtype=half"], "model.dtype='half'"),
        (
            ["model.dtype=float16", "lora.r=2", "training.precision=bf16"],
            "model.dtype=float16 does not mix with training.precision=bf16; set model.dtype=bfloat16",
        ),
    ],
)
def test_types_that_cannot_be_are_refused(place, settings, message):
    with pytest.raises(InputError, match=message) as error:
        check_settings(load("digits", [*settings_of(place, "llama", "causal-lm"), *settings]), remote=False)
    assert "\n" not in str(error.value)


def test_both_words_for_a_type_are_taken():
    experiment = load("digits", ["model.dtype=bf16", "training.precision=bfloat16", "lora.r=2"])
    assert (experiment.model.dtype, experiment.training.precision) == ("bfloat16", "bf16")


def test_a_model_that_is_not_causal_is_refused_in_16_bits(place, tmp_path):
    model = Pretrained(str(place / "bert"))
    with pytest.raises(InputError, match="attends to later tokens"):
        build_language_model(model, 32, Weights(dtype=HALF))
