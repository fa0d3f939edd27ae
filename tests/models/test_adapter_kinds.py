"""rsLoRA, DoRA, saved modules, and ranks and scales by layer: as peft has them, in every engine, with their blocks."""

import copy

import pytest
import torch
from support import tiny_models
from support.adapters import simulation

from fedadamw.blocks.blocks import Blocks
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.settings.load import load
from fedadamw.settings.lora import LoraSettings
from fedadamw.validation import InputError

SAVED = "lora.modules_to_save=[embeddings.LayerNorm,position_embeddings]"


@pytest.fixture(scope="module")
def encoder():
    """A small classifier of texts, without adapters."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_config(tiny_models.config("roberta"))


def adapters_of(model):
    """peft's layers, by name."""
    from peft.tuners.lora import LoraLayer

    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}


def adapted(encoder, **settings):
    """The encoder with adapters of rank 4."""
    given = {"r": 4, "target_modules": ("query", "key", "value"), **settings}
    return add_adapters(copy.deepcopy(encoder), LoraSettings(**given), "SEQ_CLS")


@pytest.mark.parametrize(
    "given",
    [
        ("lora.dora=true", SAVED),
        pytest.param(
            ("lora.rank_pattern={key: 2, 'layer.1.*.query': 3}", "lora.alpha_pattern={value: 5}", "lora.rslora=true"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dora", "patterns"],
)
def test_stacked_clients_come_to_the_loops_numbers(place, double, given):
    loop, stacked = (simulation(place, *given, stack=stack) for stack in (1, 3))
    for ours, theirs in zip(stacked.rounds(), loop.rounds(), strict=True):
        for name, t in loop.state.tensors().items():
            torch.testing.assert_close(stacked.state.tensors()[name], t, rtol=1e-10, atol=1e-10)
        assert (ours.up_bytes, ours.down_bytes) == (theirs.up_bytes, theirs.down_bytes)
    assert stacked.clients.engine.stacks, "the engine did not fall back to the loop"


def test_a_dora_layer_computes_what_its_paper_says(place, double):
    sim = simulation(place, "lora.dora=true", "lora.target_modules=[query]")
    for _ in sim.rounds():
        pass
    sim.load()
    for module in adapters_of(sim.workspace.module).values():
        base, a, b = (t.weight for t in (module.get_base_layer(), module.lora_A["default"], module.lora_B["default"]))
        direction = base + module.scaling["default"] * b @ a
        magnitude = module.lora_magnitude_vector["default"].weight
        assert not torch.equal(magnitude, torch.linalg.norm(base, dim=1)), "the lengths were trained"
        weight = magnitude[:, None] * direction / torch.linalg.norm(direction, dim=1, keepdim=True)
        x = torch.randn(5, 32, dtype=torch.float64)
        expected = torch.nn.functional.linear(x, weight, module.get_base_layer().bias)
        torch.testing.assert_close(module.eval()(x), expected, rtol=0, atol=1e-10)


def test_lengths_of_dora_are_vectors_of_one_block_each(encoder):
    blocks = Blocks.of(adapted(encoder, dora=True, target_modules=("query", "word_embeddings")))
    rows = [row for row in blocks.table() if "magnitude" in row.parameter]
    assert [(row.kind, row.blocks) for row in rows] == [("vector", 1)] * 3


def test_rslora_scales_by_the_root_of_the_rank(encoder):
    usual, root = (adapters_of(adapted(encoder, alpha=6, rslora=on)) for on in (False, True))
    assert {m.scaling["default"] for m in usual.values()} == {6 / 4}
    assert {m.scaling["default"] for m in root.values()} == {6 / 2}


def test_patterns_give_ranks_and_scales_as_peft_does(encoder):
    ranks, alphas = {"key": 2, "layer.1.*.query": 3}, {"value": 5}
    layers = adapters_of(adapted(encoder, rank_pattern=ranks, alpha_pattern=alphas))
    for name, module in layers.items():
        expected = 2 if name.endswith("key") else 3 if "layer.1." in name and name.endswith("query") else 4
        assert module.r["default"] == expected
        assert module.scaling["default"] == (5 if name.endswith("value") else 32) / expected
    assert {module.r["default"] for module in layers.values()} == {2, 3, 4}


def test_saved_modules_are_trained_whole_with_blocks_of_their_own_kind(place):
    sim, plain = simulation(place, SAVED), simulation(place)
    more = set(sim.workspace.layout.names) - set(plain.workspace.layout.names)
    assert {name.partition("roberta.")[2].replace("modules_to_save.default.", "") for name in more} == {
        "embeddings.LayerNorm.weight",
        "embeddings.LayerNorm.bias",
        "embeddings.position_embeddings.weight",
    }
    kinds = {row.parameter: (row.kind, row.blocks) for row in sim.algorithm.blocks.table() if row.parameter in more}
    assert sorted(kinds.values()) == [("embedding", 66), ("vector", 1), ("vector", 1)]
    before = sim.state.server.x.clone()
    sim.step()
    moved = sim.workspace.layout.views(sim.state.server.x - before)
    assert all(moved[name].any() for name in more)


def test_saved_modules_that_are_tied_or_missing_are_refused(place):
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {**tiny_models.SIZES, "vocab_size": 302, "num_key_value_heads": 2, "head_dim": 8}
    tied = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=True))
    lora = LoraSettings(target_modules=("q_proj",), modules_to_save=("embed_tokens",))
    with pytest.raises(InputError, match=r"lora.modules_to_save: .*embed_tokens.* is tied to .*lm_head"):
        add_adapters(tied, lora, "CAUSAL_LM")
    with pytest.raises(InputError, match="lora.modules_to_save: 'lm_hed' matches no module; the model has .*lm_head"):
        add_adapters(tied, lora.model_copy(update={"modules_to_save": ("lm_hed",)}), "CAUSAL_LM")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("lora.r=33", r"lora.r=33 is above 32, the smaller side of roberta.*; .*lora.rank_pattern=\{\w+: 32\}"),
        ("lora.rank_pattern={key: 40}", "lora.rank_pattern: 40 is above 32, the smaller side of .*key"),
        ("lora.rank_pattern={kee: 2}", "lora.rank_pattern: 'kee' matches no adapted layer; they are dense, key, query"),
        ("lora.alpha_pattern={kee: 2}", "lora.alpha_pattern: 'kee' matches no adapted layer"),
        ("lora.alpha_pattern={'(key': 2}", r"lora.alpha_pattern: '\(key' is not a valid pattern"),
        ("lora.rank_pattern={key: 0}", "lora.rank_pattern.key=0: input should be greater than or equal to 1"),
        ("lora.modules_to_save=embeddings", r"lora.modules_to_save='embeddings': give names in a list"),
        ("lora.dora=maybe", "lora.dora='maybe': input should be a valid boolean"),
    ],
)
def test_settings_that_fit_no_layer_are_refused_in_one_line(encoder, given, line):
    settings = ["lora.target_modules=[query,key,dense]", given]
    with pytest.raises(InputError, match=line) as found:
        add_adapters(copy.deepcopy(encoder), load("digits", settings).lora, None)
    assert "\n" not in str(found.value)
