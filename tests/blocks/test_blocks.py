"""Layout and Blocks: every coordinate in exactly one block, heads where the configuration has them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support.sequences import SmallTransformer
from torch import nn

from fedadamw.blocks.blocks import Blocks
from fedadamw.blocks.cuts import GRANULARITIES
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.skeleton import build_skeleton
from fedadamw.settings.lora import LoraSettings
from fedadamw.vector import Layout, bind, bind_gradients, trainable

MODELS = ("vit", "deit", "swin", "resnet", "bert", "roberta", "distilbert", "gpt2", "llama")
LORA = {
    "vit": ["q_proj", "v_proj"],
    "swin": ["q_proj", "v_proj"],
    "bert": ["query", "key", "value", "dense"],
    "roberta": ["query", "key", "value", "dense"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn", "c_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"],
}


def tiny(kind: str) -> nn.Module:
    """A model of transformers with its own class, but little of everything."""
    from transformers import AutoConfig

    from fedadamw.models.skeleton import build_from_config

    sizes = {
        "vit": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 32},
        "swin": {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4], "image_size": 32, "window_size": 4},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        "bert": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 32},
        "distilbert": {"dim": 24, "n_heads": 3, "n_layers": 2, "hidden_dim": 32},
        "gpt2": {"n_embd": 24, "n_head": 3, "n_layer": 2},
        "llama": {
            "hidden_size": 24,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
        },
    }
    sizes["deit"] = sizes["vit"]
    sizes["roberta"] = sizes["bert"]
    config = AutoConfig.for_model(kind, **sizes[kind])
    if hasattr(config, "vocab_size"):
        config.vocab_size = 50
        config.pad_token_id = 0
    return build_from_config(config)


def rows_of(blocks: Blocks) -> dict:
    return {row.parameter: row for row in blocks.table()}


def assert_cuts_every_coordinate_once(blocks: Blocks) -> None:
    numbers = torch.arange(blocks.B, dtype=torch.float64)
    owner = torch.full((blocks.d,), -1.0, dtype=torch.float64)
    owner.copy_(blocks.expand(numbers))
    assert torch.equal(owner.unique(), numbers), "every block has a coordinate, every coordinate a block"
    ones = torch.ones(blocks.d, dtype=torch.float64)
    torch.testing.assert_close(blocks.mean(ones), torch.ones(blocks.B, dtype=torch.float64))
    weights = torch.bincount(owner.long(), minlength=blocks.B)
    v = torch.randn(blocks.d, dtype=torch.float64)
    torch.testing.assert_close((blocks.mean(v) * weights).sum(), v.sum())
    torch.testing.assert_close(blocks.mean(blocks.expand(numbers)), numbers)
    for name, span in blocks.spans().items():  # a parameter's blocks cover that parameter and no other
        here = Layout.views(blocks.layout, owner)[name]
        assert here.min() == span.start
        assert here.max() == span.stop - 1


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", MODELS)
def test_every_coordinate_is_in_exactly_one_block(kind, granularity):
    blocks = Blocks.of(tiny(kind), granularity)
    assert "unknown" not in blocks.kinds
    assert_cuts_every_coordinate_once(blocks)
    if granularity == "coordinate":
        assert blocks.d == blocks.B
    if granularity == "tensor":
        assert len(blocks.layout.names) == blocks.B


@pytest.mark.parametrize("kind", LORA)
def test_lora_is_cut_like_the_layer_it_adapts(kind):
    model = add_adapters(tiny(kind), LoraSettings(r=4, target_modules=tuple(LORA[kind])), None).to_empty(device="cpu")
    blocks = Blocks.of(model)
    assert "unknown" not in blocks.kinds
    assert_cuts_every_coordinate_once(blocks)
    rows = rows_of(blocks)
    assert all(row.blocks == row.shape[0] == 4 for row in rows.values() if row.kind == "lora-a")
    queries = [row for row in rows.values() if row.kind == "query" and "lora_B" in row.parameter]
    heads = {"swin": {2, 4}, "llama": {6}, "gpt2": set()}.get(kind, {3})  # gpt2's are in qkv, below
    assert {row.blocks for row in queries} == heads
    fused = [row for row in rows.values() if row.kind == "qkv"]
    assert all(row.blocks == 3 + 3 + 24 for row in fused)
    assert bool(fused) == (kind == "gpt2")


def test_adapter_of_torch_attention_is_cut_by_heads():
    model = nn.ModuleDict({"mix": nn.MultiheadAttention(24, 3), "fc": nn.Linear(24, 24)})
    rows = rows_of(Blocks.of(get_peft_model(model, LoraConfig(r=2, target_modules=["mix"]))))
    assert {(row.kind, row.blocks) for name, row in rows.items() if "lora_B" in name} == {
        ("qkv", 30),
        ("projection", 24),
    }


def test_adapter_of_rank_1_is_cut_like_any_other():
    model = get_peft_model(tiny("bert"), LoraConfig(r=1, target_modules=["word_embeddings", "query"]))
    rows = rows_of(Blocks.of(model))
    (embedding,) = [row for name, row in rows.items() if "lora_embedding_B" in name]
    assert (embedding.kind, embedding.blocks) == ("embedding", embedding.shape[0])
    assert {row.blocks for name, row in rows.items() if "query.lora_B" in name} == {3}


def test_bias_of_an_adapter_is_a_vector():
    config = LoraConfig(r=2, target_modules=["0"], lora_bias=True)
    rows = rows_of(Blocks.of(get_peft_model(nn.Sequential(nn.Linear(4, 24)), config)))
    assert [(row.kind, row.blocks) for name, row in rows.items() if name.endswith("bias")] == [("vector", 1)]


def test_grouped_transposed_convolution_has_a_block_per_channel():
    (row,) = Blocks.of(nn.ConvTranspose2d(8, 12, 3, groups=4, bias=False)).table()
    assert row.blocks == 12


def test_block_counts_of_real_models_match_the_paper_table():
    """Counts worked out by hand from PAPER's table; no weights are loaded."""
    vit = rows_of(Blocks.of(build_skeleton("vit-tiny")))
    layer = "vit.layers.0."
    assert vit[layer + "attention.q_proj.weight"].blocks == 3
    assert vit[layer + "attention.k_proj.weight"].blocks == 3
    assert vit[layer + "attention.v_proj.weight"].blocks == 192
    assert vit[layer + "attention.o_proj.weight"].blocks == 192
    assert vit[layer + "mlp.fc1.weight"].blocks == 768
    assert vit["vit.embeddings.position_embeddings"].blocks == 65
    assert vit["vit.embeddings.patch_embeddings.projection.weight"].blocks == 192
    assert vit["vit.embeddings.cls_token"].blocks == 1
    assert vit["classifier.weight"].blocks == 10

    gpt2 = rows_of(Blocks.of(build_skeleton("gpt2")))
    assert gpt2["transformer.h.0.attn.c_attn.weight"].blocks == 12 + 12 + 768
    assert gpt2["transformer.h.0.mlp.c_fc.weight"].blocks == 3072
    assert gpt2["transformer.wte.weight"].blocks == 50257
    assert "lm_head.weight" not in gpt2, "tied to the embedding: one set of blocks"

    resnet = rows_of(Blocks.of(build_skeleton("resnet18")))
    assert resnet["resnet.encoder.stages.1.layers.0.layer.0.convolution.weight"].blocks == 128


def test_fingerprints_of_cuts_do_not_change():
    """A run's folder keeps them: rules for other models must not change those of these."""
    assert Blocks.of(build_skeleton("vit-tiny")).fingerprint == "3685cf2b188942dd"
    assert Blocks.of(build_skeleton("gpt2")).fingerprint == "a37f7643dbfa65b1"
    assert Blocks.of(build_skeleton("gpt2"), "coarse").fingerprint == "70152967ade45348"


def test_grouped_query_attention_has_a_block_per_key_head():
    rows = rows_of(Blocks.of(tiny("llama")))
    assert rows["model.layers.0.self_attn.q_proj.weight"].blocks == 6
    assert rows["model.layers.0.self_attn.k_proj.weight"].blocks == 2
    assert rows["model.layers.0.self_attn.v_proj.weight"].blocks == 8


def test_fused_projection_is_cut_along_its_output_axis():
    """GPT-2 keeps (in, out): head 0 of the queries is the first columns of every row."""
    model = tiny("gpt2")
    blocks = Blocks.of(model)
    name = "transformer.h.0.attn.c_attn.weight"
    owner = blocks.layout.views(blocks.expand(torch.arange(blocks.B, dtype=torch.float64)))[name]
    first = blocks.spans()[name].start
    assert (owner[:, :8] == first).all()
    assert (owner[:, 8:16] == first + 1).all()
    assert (owner[:, 24:32] == first + 3).all()  # keys
    assert (owner[:, 48] == first + 6).all()  # values, one a neuron
    assert (owner[:, 49] == first + 7).all()


def test_fused_projection_of_timm_is_cut_by_heads():
    class TimmAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 3
            self.qkv = nn.Linear(24, 72)
            self.proj = nn.Linear(24, 24)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = TimmAttention()

    rows = rows_of(Blocks.of(Block()))
    assert rows["attn.qkv.weight"].blocks == 3 + 3 + 24
    assert rows["attn.proj.weight"].kind == "projection"


class Attention8x2(nn.Module):
    """Eight query heads and two key heads of 4, and nothing that says how wide a head is."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.num_kv_heads = 8, 2
        self.q_proj = nn.Linear(32, 32)
        self.k_proj = nn.Linear(32, 8)
        self.v_proj = nn.Linear(32, 8)
        self.qkv = nn.Linear(32, 48)


@pytest.mark.parametrize("name", ["attn", "SelfAttention", "sa"])
def test_heads_are_derived_from_their_number_alone(name):
    rows = rows_of(Blocks.of(nn.ModuleDict({name: Attention8x2()})))
    assert rows[f"{name}.q_proj.weight"].blocks == 8
    assert rows[f"{name}.k_proj.weight"].blocks == 2
    assert rows[f"{name}.v_proj.weight"].blocks == 8
    assert rows[f"{name}.qkv.weight"].blocks == 8 + 2 + 8


def test_queries_without_a_number_of_heads_are_unknown():
    with pytest.warns(UserWarning, match=r"q_proj\.weight: one block per row"):
        blocks = Blocks.of(nn.ModuleDict({"q_proj": nn.Linear(4, 6)}))
    assert rows_of(blocks)["q_proj.weight"].blocks == 6


def test_matrix_with_one_column_is_cut_by_rows():
    assert rows_of(Blocks.of(nn.Sequential(nn.Linear(1, 6))))["0.weight"].blocks == 6


def test_coarse_has_one_block_per_head_or_layer():
    rows = rows_of(Blocks.of(tiny("vit"), "coarse"))
    assert {row.blocks for row in rows.values() if row.kind in ("query", "key", "value")} == {3}
    assert {row.blocks for row in rows.values() if row.kind not in ("query", "key", "value")} == {1}


def test_unknown_matrices_get_a_block_per_row_and_one_warning():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.mystery = nn.Parameter(torch.randn(5, 7))
            self.enigma = nn.Parameter(torch.randn(2, 3))

    with pytest.warns(UserWarning, match="mystery, enigma: one block per row"):
        blocks = Blocks.of(Odd())
    assert [row.blocks for row in blocks.table()] == [5, 2]


def test_custom_function_decides_the_cut():
    blocks = Blocks.of(SmallTransformer(), granularity=lambda name, p: p.shape[0] if "mlp" in name else 1)
    assert rows_of(blocks)["mlp.weight"].blocks == 8
    assert_cuts_every_coordinate_once(blocks)
    with pytest.raises(ValueError, match="5 blocks for 'embed.weight': give a divisor of its 12 numbers"):
        Blocks.of(SmallTransformer(), granularity=lambda name, p: 5)


def test_unknown_granularity_error_lists_the_allowed_ones():
    with pytest.raises(ValueError, match="use one of paper, coarse, tensor, coordinate"):
        Blocks.of(SmallTransformer(), "row")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 3))
def test_layout_flattens_and_restores_tensors(shapes, lead):
    tensors = {f"t{i}": torch.randn(*shape) for i, shape in enumerate(shapes)}
    layout = Layout.of_tensors(tensors)
    vector = layout.flatten(tensors)
    assert layout.d == len(vector) == sum(t.numel() for t in tensors.values())
    stacked = vector.expand(lead, -1) if lead else vector
    for name, view in layout.views(stacked).items():
        assert torch.equal(view, tensors[name].expand(view.shape))
    for position in range(layout.d):
        name = layout.name_at(position)
        start = layout.offsets[layout.names.index(name)]
        assert vector[position] == tensors[name].reshape(-1)[position - start]


def test_bound_module_shares_memory_with_its_vector():
    model = SmallTransformer()
    parameters = trainable(model)
    layout = Layout.of(model)
    y = layout.flatten(parameters)
    g = torch.zeros_like(y)
    bind(parameters, y)
    bind_gradients(parameters, g)
    inputs = torch.randn(4, 5, 3)
    before = model(inputs)
    y.mul_(2)
    assert not torch.equal(model(inputs), before)
    model(inputs).sum().backward()
    assert g.abs().sum() > 0
    assert torch.equal(layout.flatten({n: p.grad for n, p in parameters.items()}), g)


def test_difference_between_layouts_names_the_parameter():
    a, b = Layout.of(SmallTransformer()), Layout.of(SmallTransformer(width=8))
    assert "'embed.weight' has shape (8, 3) instead of (4, 3)" in a.difference(b)
    assert a.difference(Layout.of(SmallTransformer())) is None
