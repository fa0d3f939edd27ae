"""Tiny configurations of the architectures of transformers: narrow, and one layer of each sort that a model mixes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto import modeling_auto as auto

KINDS = sorted(
    auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.keys()
    | auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.keys()
    | auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
)
SIZES: dict[str, int] = {  # what a configuration has of these becomes so small
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size", "embedding_dim"), 32),
    **dict.fromkeys(("attention_hidden_size", "lru_width", "embed_dim", "entity_emb_size", "rnn_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "n_inner", "d_ff", "hidden_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "ffn_dim", "d_inner"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size", "expert_ffn_hidden_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "attention_head_size", "index_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_head_dim",), 12),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "entity_vocab_size"), 64),
    **dict.fromkeys(("shape_vocab_size", "pronunciation_vocab_size", "vocab_size_per_layer_input"), 64),
}
LISTS: dict[str, Callable[[int], int]] = {  # and of these, stage by stage
    "depths": lambda _: 1,
    **dict.fromkeys(("hidden_sizes", "embed_dim", "embed_dims"), lambda width: width // 4),
}
MIXER = "linear_attention"
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2}
OVERRIDES: dict[str, Mapping[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "mamba2": {"num_heads": 8, "state_size": 8},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "expand": 2},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "bit": {"num_groups": 8},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3]},
    "cpmant": {"dim_head": 8, "prompt_types": 2, "prompt_length": 4, "segment_types": 4},
    "ctrl": {"dff": 48, "n_positions": 64},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}},
    "donut-swin": {"embed_dim": 12},
    "swin": {"embed_dim": 12},
    "swinv2": {"embed_dim": 12},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "efficientnet": {"width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 128},
    "esm": {"vocab_size": 33},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "luke": {"entity_emb_size": 16},
    "ministral": {"head_dim": 8},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 1,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "regnet": {"groups_width": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [8, 8], "num_hidden_layers": 2},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "zamba": {"num_hidden_layers": 8, "layers_block_type": [*(2 * [MIXER]), "hybrid", *(4 * [MIXER]), "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(kind: str, **settings: Any) -> Any:
    """A configuration of `kind` with everything made small that has a size."""
    from transformers import AutoConfig

    changed = {**_shrunk(AutoConfig.for_model(kind)), **OVERRIDES.get(kind, {}), **settings}
    return AutoConfig.for_model(kind, **changed)


def _shrunk(config: Any) -> dict[str, Any]:
    """The settings of `config` that have to change."""
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            found[name] = {k: v for k, v in value.to_dict().items() if k != "per_layer_config"} | _shrunk(value)
        elif name in LISTS and isinstance(value, list | tuple):
            found[name] = [LISTS[name](size) for size in value]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            found[name] = SIZES[name]
        elif name.endswith("token_id") and value is not None:
            found[name] = 0
    if "qk_nope_head_dim" in vars(config) and "num_key_value_heads" in found:  # all heads read the one latent
        found |= {"num_key_value_heads": SIZES["num_attention_heads"], "head_dim": SIZES["qk_rope_head_dim"]}
    return {**found, **_layers(config)}


def _layers(config: Any) -> dict[str, Any]:
    """One layer of each sort, where lists say of each layer what it is."""
    count = getattr(config, "num_hidden_layers", None)
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == count and not name.startswith("_")
    }
    if not lists:
        return {}
    first = {repr(sort): i for i, sort in reversed(list(enumerate(zip(*lists.values(), strict=True))))}
    kept = sorted(first.values()) if len(first) > 1 else [0, 1]
    return {"num_hidden_layers": len(kept), **{name: [value[i] for i in kept] for name, value in lists.items()}}


def tiny(kind: str) -> nn.Module:
    """The class of `kind` that one fine-tunes, on the meta device."""
    from fedadamw.models.skeleton import build_from_config

    with torch.device("meta"):
        return build_from_config(tiny_config(kind))
