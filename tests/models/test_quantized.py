"""A base in 8 and 4 bits: which layers, that adapters learn on it, its bytes, merging, and what is refused."""

import json

import pytest
import torch
from support import tiny_models
from support.trained_texts import logits, run, settings_of
from transformers import AutoModelForCausalLM, ViTConfig, ViTForImageClassification

from benchmarks.common.base_bytes import bytes_of_base
from fedadamw.models import quantized
from fedadamw.models.dtypes import Weights
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.skeleton import build_skeleton
from fedadamw.models.text import build_language_model
from fedadamw.prepare.base import warn_if_not_stacked
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.choices import default_stack
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
KINDS = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantised")
    for kind in ("bert", "llama", "qwen3", "gemma3"):
        tiny_models.half_folder(path / kind, kind, sizes=tiny_models.WIDE)
    for name, rows, seed in (("reviews.csv", 60, 0), ("more.csv", 30, 1)):
        tiny_models.reviews(path / name, rows=rows, seed=seed)
    return path


def language(place, kind, *more):
    adapters = ["lora.target_modules=all-linear", "lora.r=4", "lora.dropout=0", "training.lr=0.02"]
    return settings_of(place, kind, "causal-lm", *adapters, *more)


def layers(model, quantize):
    """The names of the quantised layers, all of one kind."""
    packed = {name: module for name, module in model.named_modules() if quantized.is_packed(module)}
    assert {type(module).__name__ for module in packed.values()} == {KINDS[quantize]}
    return set(packed)


@pytest.mark.parametrize(
    ("kind", "quantize"),
    [
        ("llama", "4bit"),
        ("llama", "8bit"),
        *(
            pytest.param(kind, quantize, marks=pytest.mark.slow)
            for kind in ("qwen3", "gemma3")
            for quantize in ("4bit", "8bit")
        ),
    ],
)
@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_losses_fall_on_a_base_of_few_bits(place, kind, quantize, fresh):
    settings = language(place, kind, f"model.quantize={quantize}", f"model.fresh={fresh}", "training.rounds=4")
    prepared = prepare(load("digits", [*settings, "training.steps=5"]))
    model = prepared.workspace.module.get_base_model()
    assert len(layers(model, quantize)) == 2 * 7, "of two layers, all linear ones, and not the output's"
    simulation = prepared.simulation()
    before = simulation.evaluate().loss
    assert list(simulation.rounds())[-1].test_loss < before - 0.15


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_the_bytes_of_a_base_are_those_that_it_takes(place, quantize):
    skeleton = build_skeleton(str(place / "llama"))
    for how in ("none", quantize):
        weights = Weights(dtype=torch.bfloat16, quantize=how, compute=torch.bfloat16)
        model = build_language_model(Pretrained(str(place / "llama")), 32, weights).model
        assert bytes_of_base(skeleton, torch.bfloat16, how).total == held_bytes(model)


def held_bytes(model) -> int:
    """The bytes of a model's parameters and of what quantised ones keep beside them."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            kept = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            total += sum(t.numel() * t.element_size() for t in kept)
        if type(module).__name__ == "Linear8bitLt":
            scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB
            total += scales.numel() * scales.element_size()
    return total


def test_fresh_weights_have_the_models_own_spread_and_tie_what_it_ties(place):
    weights = Weights(fresh=True, dtype=torch.bfloat16, quantize="4bit", compute=torch.bfloat16)
    for kind in ("llama", "gemma3"):
        pretrained = Pretrained(str(place / kind))
        model = build_language_model(pretrained, 32, weights).model
        assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert tied == pretrained.config.tie_word_embeddings
        layer = model.model.layers[0].mlp.down_proj
        whole = quantized._whole(layer, [], torch.float32).weight
        assert whole.std().item() == pytest.approx(pretrained.config.initializer_range, rel=0.05)


def test_layers_whose_rows_are_no_whole_blocks_stay_as_they_are(tmp_path):
    weights = Weights(dtype=torch.bfloat16, quantize="4bit", compute=torch.bfloat16)
    odd = Pretrained(tiny_models.folder(tmp_path / "odd", "llama", {**tiny_models.WIDE, "intermediate_size": 80}))
    names = layers(build_language_model(odd, 32, weights).model, "4bit")
    assert len(names) == 2 * 6, "all but down_proj"
    assert not any("down_proj" in name for name in names)
    none = Pretrained(tiny_models.folder(tmp_path / "none", "llama"))
    with pytest.raises(InputError, match="model.quantize=4bit: the model has no linear layer with rows of a multiple"):
        build_language_model(none, 32, weights)


def test_a_layer_made_whole_differs_by_the_rounding_of_its_bits(place):
    pretrained = Pretrained(str(place / "llama"))
    expected = build_language_model(pretrained, 32).model.model.layers[0].mlp.down_proj.weight
    for quantize, rounding in (("4bit", 0.1), ("8bit", 0.01)):
        weights = Weights(dtype=torch.bfloat16, quantize=quantize, compute=torch.bfloat16)
        layer = build_language_model(pretrained, 32, weights).model.model.layers[0].mlp.down_proj
        error = quantized._whole(layer, [], torch.float32).weight - expected
        assert error.std() < rounding * expected.std()


@pytest.mark.parametrize("quantize", ["4bit", pytest.param("8bit", marks=pytest.mark.slow)])
def test_a_merged_export_is_whole_and_answers_as_the_run_did(place, tmp_path, quantize):
    folder, simulation = run(tmp_path / "run", language(place, "llama", f"model.quantize={quantize}"))
    expected = logits(simulation.workspace.module, simulation)
    export(open_run(folder.path), tmp_path / "adapter")
    assert torch.equal(logits(open_trained(tmp_path / "adapter").model, simulation), expected)
    export(open_run(folder.path), tmp_path / "whole", merged=True)
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    whole = open_trained(tmp_path / "whole").model
    assert {p.dtype for p in whole.parameters()} == {torch.bfloat16}
    difference = logits(whole, simulation) - expected  # of layers rounded to bfloat16, in another order on each CPU
    assert difference.norm() < 0.03 * expected.norm()
    new = prepare(load("digits", [*language(place, "llama"), f"model={folder.path}"])).simulation()
    assert new.evaluate().loss == pytest.approx(folder.records()[-1]["test_loss"], rel=0.03)


@pytest.mark.slow
def test_dora_trains_on_4_bits_and_is_not_merged_into_them(place, tmp_path):
    folder, simulation = run(tmp_path / "run", language(place, "llama", "model.quantize=4bit", "lora.dora=true"))
    assert folder.records()[-1]["test_loss"] < prepare(load(str(folder.config))).simulation().evaluate().loss
    export(open_run(folder.path), tmp_path / "adapter")
    adapted = open_trained(tmp_path / "adapter").model
    assert torch.equal(logits(adapted, simulation), logits(simulation.workspace.module, simulation))
    with pytest.raises(InputError, match="adapters with DoRA are not merged into a quantised base"):
        export(open_run(folder.path), tmp_path / "whole", merged=True)


def test_a_folder_that_is_quantised_already_loads(place, tmp_path):
    weights = Weights(dtype=torch.bfloat16, quantize="4bit", compute=torch.bfloat16)
    pretrained = Pretrained(str(place / "llama"))
    build_language_model(pretrained, 32, weights).model.save_pretrained(tmp_path / "packed")
    pretrained.tokenizer.save_pretrained(tmp_path / "packed")
    settings = [*language(place, "llama"), f"model={tmp_path / 'packed'}"]
    records = list(prepare(load("digits", settings)).simulation().rounds())
    assert records[-1].test_loss < records[0].test_loss
    for more, message in (
        ("lora=null", "in 4bit already, is not trained as a whole; train adapters"),
        ("lora.aggregate=exact", "lora.aggregate=exact adds a little"),
        ("stack=2", r"\(in 4bit already\): its clients train one after the other; set stack=1"),
        ("model.quantize=8bit", "model.quantize=8bit: the weights of .* are in 4bit already"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(load("digits", [*settings, more]))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_other_ways_of_quantising_are_named(place, tmp_path, method):
    folder = tiny_models.folder(tmp_path / "model", "llama")
    config = tmp_path / "model" / "config.json"
    quantisation = {"quantization_config": {"quant_method": method, "bits": 4}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **quantisation}))
    with pytest.raises(InputError, match=f"quantised by {method}, and only those of bitsandbytes are read"):
        prepare(load("digits", [*language(place, "llama"), f"model={folder}"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["lora=null"],
            "model.quantize=4bit: a quantised model is not trained as a whole; train adapters: -s lora.r=16",
        ),
        (["lora.aggregate=exact"], "lora.aggregate=exact adds a little to the base"),
        (["lora.aggregate=residual"], "lora.aggregate=residual adds a little to the base"),
        (["lora.dora=true", "model.quantize=8bit"], "lora.dora=true works with bases in 4 bits, not with model.quan"),
        (["stack=2"], "set stack=1"),
        (["shards=2"], "set shards=1"),
        (["model.quantize=3bit"], "model.quantize='3bit'"),
    ],
)
def test_what_a_base_of_few_bits_cannot_do_is_refused(place, settings, message):
    with pytest.raises(InputError, match=message) as error:
        check_settings(load("digits", [*language(place, "llama", "model.quantize=4bit"), *settings]), remote=False)
    assert "\n" not in str(error.value)


def test_clients_that_would_be_stacked_on_a_gpu_train_one_after_the_other_and_that_is_said(place):
    experiment, gpu = load("digits", language(place, "llama", "model.quantize=4bit")), torch.device("cuda")
    assert default_stack(experiment, gpu) == 1
    with pytest.warns(UserWarning, match="model.quantize=4bit: clients train one after the other"):
        warn_if_not_stacked(experiment, gpu)
    warn_if_not_stacked(experiment, torch.device("cpu"))
    warn_if_not_stacked(load("digits", language(place, "llama")), gpu)


def test_a_built_in_image_model_is_not_quantised():
    with pytest.raises(InputError, match="'vit-micro' is too small to quantise"):
        check_settings(load("digits", ["model.quantize=8bit", "lora.r=2"]), remote=False)


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_an_image_classifier_of_few_bits_learns(tmp_path, quantize):
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 64, "num_hidden_layers": 2}
    config = ViTConfig(**shape, num_attention_heads=4, intermediate_size=128, num_labels=10, initializer_range=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).to(torch.bfloat16).save_pretrained(tmp_path / "vit")
    adapters = ["lora.target_modules=all-linear", "lora.r=8", f"model.quantize={quantize}", "training.lr=0.01"]
    rounds = [
        "training.rounds=4",
        "training.steps=20",
        "training.clients_per_round=2",
        "partition={kind: iid, clients: 2}",
    ]
    simulation = prepare(load("digits", [f"model={tmp_path / 'vit'}", *adapters, *rounds, "device=cpu"])).simulation()
    first, *_, last = simulation.rounds()
    assert len(layers(simulation.workspace.module, quantize)) == 2 * 6
    assert last.train_loss < first.train_loss - 0.3


def test_outliers_in_8_bits_do_not_make_a_model_look_ahead(tmp_path):
    tiny_models.half_folder(tmp_path / "model", "llama", sizes=tiny_models.WIDE)
    large = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    large.model.layers[0].mlp.up_proj.weight.data.mul_(2000)
    large.save_pretrained(tmp_path / "model")
    weights = Weights(dtype=torch.bfloat16, quantize="8bit", compute=torch.bfloat16)
    model = build_language_model(Pretrained(str(tmp_path / "model")), 32, weights).model
    layer = model.model.layers[0].mlp.down_proj
    assert layer.state.threshold == 6.0
    model(input_ids=torch.arange(8)[None])
    assert len(layer.state.idx) > 0, "it has outliers"


def test_a_quantised_layer_is_not_trained_whole(place):
    settings = language(place, "llama", "model.quantize=4bit", "lora.modules_to_save=[down_proj]")
    with pytest.raises(InputError, match="lora.modules_to_save: model.layers.0.mlp.down_proj is quantised"):
        prepare(load("digits", settings))


def test_a_missing_library_is_named_with_pips_command(place, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="model.quantize=4bit needs bitsandbytes: pip install 'bitsandbytes"):
        check_settings(load("digits", language(place, "llama", "model.quantize=4bit")), remote=False)


@pytest.mark.slow
def test_a_classifier_in_4_bits_has_a_whole_head(place):
    settings = ["model.quantize=4bit", "lora.r=4", "lora.target_modules=[query,value,dense]", "lora.dropout=0"]
    prepared = prepare(load("digits", settings_of(place, "bert", "text", *settings)))
    heads = [p for name, p in prepared.workspace.module.named_parameters() if "classifier" in name and p.requires_grad]
    assert heads
    assert {p.dtype for p in heads} == {torch.float32}
    assert all(0 < record.test_loss < 2 for record in prepared.simulation().rounds())
