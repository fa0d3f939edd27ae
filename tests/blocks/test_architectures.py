"""Every text and vision architecture of transformers: known parameters, and heads where the model itself has them."""

import re
from collections import defaultdict
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from support.architectures import KINDS, tiny, tiny_config
from support.cases import fast_first
from torch.overrides import TorchFunctionMode

from fedadamw.blocks.blocks import Blocks
from fedadamw.blocks.cuts import Parameter, parameters_of
from fedadamw.models.skeleton import build_from_config

DO_NOT_BUILD = {  # a library is missing, or the default configuration is incomplete
    "dinat",
    "dots3_note",
    "gemma3n",
    "gemma4_assistant",
    "gemma4_unified_assistant",
    "layoutlmv2",
    "musicgen",
    "musicgen_melody",
    "qwen4_exp",
    "qwen4_exp_text",
    "timm_wrapper",
}
FAMILIAR = ("bert", "distilbert", "gemma3_text", "gpt2", "llama", "mamba2", "mixtral", "qwen3", "roberta", "t5", "vit")
UNKNOWN = {"inkling2_text"}  # convolutions and norms of its own, computed from the tokens
WITHOUT_HEADS = {  # no layer that is a query alone or with its key
    *("falcon_mamba", "mamba", "mamba2", "fnet", "rwkv", "jetmoe"),  # JetMoE's queries are experts
    *("bit", "convnext", "convnextv2", "efficientnet", "focalnet", "hgnet_v2", "mobilenet_v1", "mobilenet_v2"),
    *("mobilevitv2", "poolformer", "pp_lcnet", "regnet", "resnet", "textnet"),
}
MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}  # peft refuses some of their layers
HEADS = {  # that the configuration names otherwise, or not at all
    "convbert": {2},  # half of them are convolutions
    "dots3_note_text": {4, 64},
    "inkling2_text": {4, 48},  # sliding layers have heads of their own
    "inkling_text": {4, 64},
    "laguna": {48},
    "levit": {2, 4, 8, 12},  # twice as many where it subsamples
    "perceiver": {1, 4},
    "swiftformer": {1},
    **{key: {2, 4} for key in ("olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_text")},  # linear attention has two
    **{key: {2, 4} for key in ("qwen3_5_moe_text", "qwen3_next")},
    **{key: {3, 6, 12, 24} for key in ("donut-swin", "swin", "swinv2")},
    **{key: {1, 2, 5, 8} for key in ("pvt", "pvt_v2", "segformer")},
    "cvt": {1, 3, 6},
    "hiera": {1, 2, 4, 8},
}
KEY_HEADS = {  # where there are not two of a configuration with num_key_value_heads, and as many as queries without
    **{key: {1} for key in ("falcon", "gpt_bigcode")},  # multi-query
    **{key: {2} for key in ("blt", "emu3", "gemma4", "gemma4_unified", "llama4", "mllama", "t5gemma")},  # composed
    **{key: {2} for key in ("gemma4_text", "gemma4_unified_text", "qwen3_5", "qwen3_5_moe", "jetmoe")},
    **{key: {2, 4} for key in ("gemma3", "got_ocr2", "moss_transcribe_diarize", "shieldgemma2", "t5gemma2")},
    **{key: {2, 4} for key in ("ultravbert", "mimo_v2_flash", "minimax", "phi4_multimodal")},
    "dots3_note_text": {1, 4, 64},
    "inkling2_text": {2, 8},
    "inkling_text": {2, 16},
    "deepseek_v4": set(),  # one head is key and value at once
    "granitemoehybrid": {2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_known_role_and_is_cut_once(kind):
    if kind in DO_NOT_BUILD:  # docs/architectures.md says why
        with pytest.raises(Exception):  # noqa: B017, PT011  (each library has its own)
            tiny(kind)
        return
    model = tiny(kind)
    if kind in UNKNOWN:
        with pytest.warns(UserWarning, match="no block rule knows"):
            blocks = Blocks.of(model)
    else:
        blocks = Blocks.of(model)  # a warning would be an error
        assert "unknown" not in blocks.kinds
    assert_cuts_every_coordinate_once(blocks)
    assert_heads(kind, model)
    assert_tied_weights_are_cut_once(model, blocks)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")  # peft sees a transposed Conv1D itself
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # peft's own, for stacked experts
@pytest.mark.parametrize("kind", fast_first(FAMILIAR, set(KINDS) - DO_NOT_BUILD - set(FAMILIAR)))
def test_adapters_are_cut_like_the_layers_they_adapt(kind):
    """A B of every layer that peft adapts, with the heads, latents and gates of that layer."""
    model = tiny(kind)
    layers = {p.name.removesuffix(".weight"): p for p in parameters_of(model)}
    refused = {"out_proj", "conv1d"} if kind in MAMBA else set()
    targets = [
        name
        for name, module in model.named_modules()
        if name in layers and takes_an_adapter(module) and name.rsplit(".", 1)[-1] not in refused
    ]
    with torch.device("meta"):
        model = get_peft_model(model, LoraConfig(r=3, target_modules="|".join(map(re.escape, targets))))
    found = {p.name.removeprefix("base_model.model."): p for p in parameters_of(model)}
    adapted = {name: b for name in targets if (b := found.get(f"{name}.lora_B.default.weight")) is not None}
    assert 3 * len(adapted) > len(targets), "of a gated MLP peft takes one layer of three, beside stacked experts"
    for name, b in adapted.items():
        layer = layers[name]
        if layer.kind == "head":  # which is trained itself
            continue
        assert (name, b.kind, b.groups, b.outer, b.parts) == (name, layer.kind, layer.groups, 1, layer.parts)


def takes_an_adapter(module: torch.nn.Module) -> bool:
    plain = (
        isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d) and getattr(module, "groups", 1) == 1
    )
    return plain or type(module).__name__ == "Conv1D"


@pytest.mark.parametrize("granularity", ["paper", "coarse"])
def test_adapter_of_stacked_experts_has_blocks_per_expert(granularity):
    """peft keeps B as (out, r x experts), read as (out, r, experts): column j is expert j % experts."""
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    with torch.device("meta"):
        model = get_peft_model(tiny("mixtral"), LoraConfig(r=3, target_modules=[], target_parameters=parameters))
    blocks = Blocks.of(model, granularity)
    assert_cuts_every_coordinate_once(blocks)
    owners = blocks.layout.views(blocks.expand(torch.arange(blocks.B, dtype=torch.float64)))
    stacked = [row for row in blocks.table() if row.kind == "expert"]
    assert len(stacked) == 2 * 2
    for row in stacked:
        of_expert = owners[row.parameter].view(row.shape[0], 3, 4)  # of four experts
        assert torch.equal(of_expert[:, 0], of_expert[:, 2])
        assert len(of_expert[:, 0].unique()) == row.shape[0] * 4 == row.blocks


def assert_cuts_every_coordinate_once(blocks: Blocks) -> None:
    numbers = torch.arange(blocks.B, dtype=torch.float64)
    owner = blocks.expand(numbers)
    sizes = [n for cuts in blocks.cuts for c in cuts for n in [c.outer * c.inner] * c.total]
    assert torch.equal(owner.long().bincount(minlength=blocks.B), torch.tensor(sizes))
    torch.testing.assert_close(blocks.mean(owner), numbers)


def assert_heads(kind: str, model: torch.nn.Module) -> None:
    """As many query and key blocks as the configuration has heads."""
    found = defaultdict(set)
    for p in parameters_of(model):
        for part in p.parts:
            found[part.role].add(p.groups * part.rows // part.paper)
    if kind in WITHOUT_HEADS:
        assert not found["query"]
        return
    config = vars(model.config)
    heads = HEADS.get(kind, {4})
    assert found["query"] == heads
    if "kv_lora_rank" in config:  # a key for all heads beside theirs
        assert found["key"] == KEY_HEADS.get(kind, {1, 4})
    else:
        assert found["key"] == KEY_HEADS.get(kind, {2} if config.get("num_key_value_heads") == 2 else heads)


def assert_tied_weights_are_cut_once(model: torch.nn.Module, blocks: Blocks) -> None:
    names = defaultdict(set)
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            names[id(weight)].add(name)
    assert all(len(tied & set(blocks.layout.names)) == 1 for tied in names.values())


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "lm_head"), ("gemma", "lm_head"), ("mpt", "lm_head")])
def test_head_tied_to_the_embedding_has_no_separate_blocks(kind, head):
    model = tiny(kind)
    assert model.get_parameter(f"{head}.weight") is model.get_input_embeddings().weight
    assert f"{head}.weight" not in Blocks.of(model).layout.names


def test_most_architectures_are_covered():
    assert len(set(KINDS) - DO_NOT_BUILD - UNKNOWN) >= 250


FUSED = {
    **{kind: {} for kind in ("bloom", "codegen", "deberta", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "mpt")},
    **{kind: {} for kind in ("gpt_neox_japanese", "imagegpt", "modernbert", "openai-gpt", "persimmon", "phi3")},
    **{kind: {} for kind in ("axk2", "deepseek_v3", "minicpm3", "levit", "hiera", "llama", "squeezebert", "jetmoe")},
    "falcon, new": {"new_decoder_architecture": True},
    "falcon, a key a head": {"multi_query": False, "num_kv_heads": 4},
    "gpt_bigcode, a key a head": {"multi_query": False},
    "qwen3_next, gated": {"layer_types": ["full_attention"] * 2},
    "qwen3_5_text, gated": {"layer_types": ["full_attention"] * 2},
}


@pytest.mark.parametrize("case", FUSED)
def test_blocks_of_heads_match_the_forward_pass(case):
    """What a head's queries, keys and values depend on, by the model's own forward pass, is that head's blocks."""
    torch.manual_seed(0)
    model = build_from_config(tiny_config(case.split(",")[0], **FUSED[case])).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.5, 0.3)
    states = attention_states(model)
    blocks = Blocks.of(model)
    owners = blocks.layout.views(blocks.expand(torch.arange(blocks.B, dtype=torch.float64)))
    parameters = [p for p in parameters_of(model) if p.kind in ("query", "key", "value", "qkv", "expert")]
    for role, state in states.items():
        for head in range(state.shape[1]):
            mixed = (state[:, head] * torch.randn_like(state[:, head])).sum()
            gradients = torch.autograd.grad(mixed, [p.tensor for p in parameters], retain_graph=True, allow_unused=True)
            touched = [
                (p, g.ne(0), owners[p.name]) for p, g in zip(parameters, gradients, strict=True) if g is not None
            ]
            assert touched
            for parameter, hit, owner in touched:
                assert_whole_blocks(role, parameter, hit, owner)


def assert_whole_blocks(role: str, parameter: Parameter, hit: torch.Tensor, owner: torch.Tensor) -> None:
    """Whole blocks of that role are hit: one of queries or keys, and no others but latents, which all heads share."""
    first = int(owner.min())
    roles = roles_of_blocks(parameter)
    blocks = owner[hit].unique()
    found = [roles[int(block) - first] for block in blocks]
    assert set(found) <= {role, "latent", "expert"}, parameter.name
    assert role == "value" or found.count(role) <= 1, parameter.name
    for block in blocks:
        assert hit[owner == block].float().mean() > 0.8, parameter.name  # a gradient may be zero by chance


def roles_of_blocks(parameter: Parameter) -> list[str]:
    """The role of each block in order: piece by piece, and in a piece group by group."""
    roles = []
    for _, alike in groupby(parameter.parts, lambda part: (part.paper, part.coarse)):
        roles += parameter.groups * [part.role for part in alike for _ in range(part.rows // part.paper)]
    return roles


class FirstAttention(TorchFunctionMode):
    """Catches queries, keys and values (batch, heads, tokens, width) of the first attention that is computed."""

    def __init__(self):
        super().__init__()
        self.states = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        named = kwargs or {}
        if "value" not in self.states:
            if function is F.scaled_dot_product_attention:
                given = [*args, *(named[name] for name in ("query", "key", "value")[len(args) :])]
                self.states = dict(zip(("query", "key", "value"), given, strict=False))
            elif "matmul" in function.__name__ and min(a.dim() for a in args) >= 4 and args[1].requires_grad:
                self.product(args[0].flatten(0, -4), args[1].flatten(0, -4))
            elif function.__name__ == "baddbmm":
                self.product(*(product[None] for product in (*args[1:], *named.values())[:2]))
            elif function is torch.bmm and self.states:
                self.product(args[0][None], args[1][None])
        return function(*args, **named)

    def product(self, left, right):
        if self.states:
            self.states["value"] = right
        else:
            self.states = {"query": left, "key": right.transpose(-1, -2)}


def attention_states(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    inputs = torch.randn(1, 3, 224, 224) if model.main_input_name == "pixel_values" else torch.randint(3, 30, (1, 6))
    with FirstAttention() as seen:
        model(**{model.main_input_name: inputs})
    return seen.states


def test_expert_has_a_block_per_output_in_either_orientation():
    for kind, name, shape in (
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", (4, 96, 32)),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj", (4, 32, 96)),  # (experts, in, out)
        ("llama4_text", "model.layers.0.feed_forward.experts.gate_up_proj", (4, 32, 96)),
    ):
        blocks = Blocks.of(tiny(kind))
        owner = blocks.layout.views(blocks.expand(torch.arange(blocks.B, dtype=torch.float64)))[name]
        assert owner.shape == shape
        neurons = torch.arange(4 * 96).view(4, 96) + blocks.spans()[name].start
        along = neurons[:, :, None] if shape[1] == 96 else neurons[:, None, :]
        assert torch.equal(owner.long(), along.expand(shape))
        coarse = Blocks.of(tiny(kind), "coarse")
        assert coarse.spans()[name].stop - coarse.spans()[name].start == 4, "an expert's layer is a layer"


def test_dbrx_keeps_its_experts_in_one_matrix():
    blocks = Blocks.of(tiny("dbrx"))
    owners = blocks.layout.views(blocks.expand(torch.arange(blocks.B, dtype=torch.float64)))
    name = next(name for name in owners if name.endswith("w2"))
    owner = owners[name].view(4, -1, 32) - blocks.spans()[name].start  # (experts, in, out)
    assert torch.equal(owner.long(), torch.arange(4 * 32).view(4, 1, 32).expand_as(owner))


def test_input_of_a_state_space_layer_is_not_attention():
    kinds = {row.parameter: row.kind for row in Blocks.of(tiny("mamba2")).table()}
    assert kinds["backbone.layers.0.mixer.in_proj.weight"] == "mlp"


def test_mlp_inside_an_attention_module_is_an_mlp():
    kinds = {row.parameter: row.kind for row in Blocks.of(tiny("perceiver")).table()}
    assert kinds["perceiver.encoder.cross_attention.mlp.dense1.weight"] == "mlp"


def test_key_heads_come_from_the_configuration_if_the_module_has_only_heads():
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(num_key_value_heads=2, num_attention_heads=8)
            self.num_heads = 8
            self.k_proj = torch.nn.Linear(32, 8)
            self.inner = torch.nn.MultiheadAttention(32, 4)  # knows no other number of key heads

    rows = {row.parameter: row.blocks for row in Blocks.of(torch.nn.ModuleDict({"attn": Attention()})).table()}
    assert rows["attn.k_proj.weight"] == 2
    assert rows["attn.inner.in_proj_weight"] == 4 + 4 + 32


def test_layers_may_differ_in_their_number_of_key_heads():
    config = tiny_config("mimo_v2_flash", num_attention_heads=8)  # sliding layers have twice as many as the others
    with torch.device("meta"):
        blocks = Blocks.of(build_from_config(config))
    assert {row.blocks for row in blocks.table() if row.kind == "key"} == {2, 4}


def test_query_whose_rows_do_not_fit_its_heads_is_unknown():
    class GatedAttention(torch.nn.Module):  # the rows are twice what heads of that width have
        def __init__(self):
            super().__init__()
            self.num_heads, self.head_dim = 4, 8
            self.q_proj = torch.nn.Linear(32, 64)

    with pytest.warns(UserWarning, match=r"attn\.q_proj\.weight: one block per row"):
        Blocks.of(torch.nn.ModuleDict({"attn": GatedAttention()}))


def test_projection_whose_layout_has_no_rule_is_unknown():
    class UnheardOfAttention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.head_dim = 4, 8
            self.query_key_value = torch.nn.Linear(32, 96)  # by head, or all queries first?

    with pytest.warns(UserWarning, match=r"query_key_value\.weight: one block per row"):
        Blocks.of(torch.nn.ModuleDict({"attn": UnheardOfAttention()}))
