"""Names of layers and parameters: the tables from which block rules read their roles.

A layer's name alone is enough if all libraries use it in the same way. For a fused tensor with a special layout, the
name of the module's class precedes it. Layouts follow the views in transformers' modeling files.
"""

from typing import NamedTuple


class Role(NamedTuple):
    """The parts of a layer's rows, in order, and how often that order repeats."""

    parts: tuple[str, ...]
    repeats: str = "once"  # or "a head", "a key head", "a number"
    number: int = 0


QUERY, KEY, VALUE = Role(("query",)), Role(("key",)), Role(("value",))
PROJECTION, GATE, LATENT, MLP = Role(("projection",)), Role(("gate",)), Role(("latent",)), Role(("mlp",))
QKV = Role(("query", "key", "value"))  # all queries, all keys, all values
QKV_BY_HEAD = Role(("query", "key", "value"), "a key head")  # a key head's queries, its key, its value
KV, KV_BY_HEAD = Role(("key", "value")), Role(("key", "value"), "a head")
GATED_QUERY = Role(("query", "gate"), "a head")

_NAMES = {  # layers of attention, inside or outside an attention module
    QUERY: "query q_proj q_lin q_attn q wq to_query query_proj project_q Wq q_head q_b_proj projection_query "
    "queries query_global w2e_query e2w_query e2e_query pos_q_proj wq_b query_key",  # query_key: one matrix for both
    KEY: "key k_proj k_lin k wk to_key key_proj project_k Wk k_head projection_key key_global pos_proj",
    VALUE: "value v_proj v_lin v wv value_proj project_v Wv v_head projection_value value_global "
    "v_proj_current v_proj_delayed",
    QKV: "qkv c_attn qkv_proj Wqkv in_proj_qkv",
    LATENT: "q_a_proj",
    Role(("latent", "rope")): "kv_a_proj_with_mqa",
    Role(("nope", "value"), "a head"): "kv_b_proj",
    Role(("query", "key", "value", "gate"), "a key head"): "in_proj_qkvz",
    GATE: "in_proj_z in_proj_a in_proj_b in_proj_ba",
    Role(("unknown",)): "query_key_value queries_keys_values keys_values kv_proj",  # layouts differ
}
_INSIDE = {  # roles that a name has inside an attention module only
    PROJECTION: "dense out_proj o_proj out_lin proj c_proj o wo Wo attention_out post_proj projection final "
    "o_a_proj o_b_proj",
    GATE: "gate_proj g_proj a_proj b_proj f_proj f_a_proj f_b_proj g_a_proj g_b_proj output_gate weights_proj dt_proj",
    MLP: "continuous_position_bias_mlp conv_kernel_layer conv_out_layer relative_pos_embeddings",
}
ANYWHERE = {name: role for role, names in _NAMES.items() for name in names.split()}
INSIDE = {**ANYWHERE, **{name: role for role, names in _INSIDE.items() for name in names.split()}}
OF_MULTIHEAD_ATTENTION = {"in_proj": QKV, "q_proj": QUERY, "k_proj": KEY, "v_proj": VALUE}  # with _weight
BY_CLASS = {
    "crossattention.c_attn": KV,  # GPT-2's, beside a q_attn
    **dict.fromkeys(
        (
            "BloomAttention.query_key_value",
            "DisentangledSelfAttention.in_proj",  # DeBERTa; its second version has separate layers
            "FalconAttention.query_key_value",
            "GPTBigCodeAttention.c_attn",
            "GPTNeoXAttention.query_key_value",
            "GPTNeoXJapaneseAttention.query_key_value",
            "LevitAttention.queries_keys_values",
            "PersimmonAttention.query_key_value",
        ),
        QKV_BY_HEAD,
    ),
    "CodeGenAttention.qkv_proj": Role(("query", "value", "key"), "a number", 4),  # written for four accelerators
    "LevitAttentionSubsample.keys_values": KV_BY_HEAD,
    "JetMoeAttention.kv_proj": KV,
    "JetMoeTopKGating.layer": Role(("router",)),
    "InklingAttention.r_proj": MLP,  # mixes profiles of relative positions
    "LiltSelfAttention.layout_query": Role(("narrow query",)),
    "LiltSelfAttention.layout_key": Role(("narrow key",)),
    "LiltSelfAttention.layout_value": VALUE,
    "MiniMaxLightningAttention.qkv_proj": Role(("query", "key", "value"), "a head"),
    **dict.fromkeys(  # one head is key and value at once: it is cut as the finer of the two
        ("DeepseekV4Attention.kv_proj", "DeepseekV4HCACompressor.kv_proj", "DeepseekV4CSACompressor.kv_proj"), VALUE
    ),
    "DeepseekV4Indexer.kv_proj": VALUE,
    "AXK2Attention.q_gate_proj": GATED_QUERY,
    **dict.fromkeys(
        ("Qwen3NextAttention.q_proj", "Qwen3_5Attention.q_proj", "Qwen3_5MoeAttention.q_proj"), GATED_QUERY
    ),
    **dict.fromkeys(  # RWKV mixes over time channel by channel, without heads
        ("RwkvSelfAttention.key", "RwkvSelfAttention.value", "RwkvSelfAttention.receptance"), MLP
    ),
    **dict.fromkeys(("RwkvFeedForward.key", "RwkvFeedForward.value", "RwkvFeedForward.receptance"), MLP),
    "RwkvSelfAttention.output": PROJECTION,
}


class Direct(NamedTuple):
    """A parameter that a module has directly, not in an nn.Linear or similar layer."""

    kind: str
    axes: str  # rows: (out, in); in-out: (in, out); stack: (n, out, in); in-out stack: (n, in, out)


POSITION = Direct("embedding", "rows")
DIRECT = {
    "relative_position_bias_table": Direct("position-bias", "in-out"),  # ((2w-1)^2, heads)
    "CpmAntSegmentPositionEmbedding.relative_attention_bias": Direct("position-bias", "in-out"),
    "attention_biases": Direct("position-bias", "rows"),  # (heads, offsets)
    **dict.fromkeys(("r_w_bias", "r_r_bias", "r_s_bias"), Direct("position-bias", "rows")),  # (heads, head_dim)
    **dict.fromkeys(("register_tokens", "seg_embed"), Direct("embedding", "tokens")),
    **dict.fromkeys(("rel_pos_h", "rel_pos_w"), POSITION),
    "PerceiverEmbeddings.latents": Direct("embedding", "rows"),
    "QuantEmbedding.weight": Direct("embedding", "rows"),
    "A_log": Direct("state", "rows"),  # (channels, states)
    **dict.fromkeys(("ZambaMambaMixer.x_proj_weight", "ZambaMambaMixer.dt_proj_weight"), Direct("mlp", "stack")),
    **dict.fromkeys(
        ("ZambaMambaMixer.dt_proj_bias", "ZambaMambaMixer.D"), Direct("state", "rows")
    ),  # (heads, channels)
    "ZambaMambaMixer.A_log": Direct("state", "stack"),  # (heads, channels, states)
    "XLNetRelativeAttention.q": Direct("query", "in-out"),  # (in, heads, head_dim)
    **dict.fromkeys(("XLNetRelativeAttention.k", "XLNetRelativeAttention.r"), Direct("key", "in-out")),
    "XLNetRelativeAttention.v": Direct("value", "in-out"),
    "XLNetRelativeAttention.o": Direct("projection", "rows"),
    "FunnelRelMultiheadAttention.r_kernel": Direct("key", "in-out"),
    "mm_input_projection_weight": Direct("mlp", "in-out"),
    **dict.fromkeys(("DeepseekV4HyperConnection.fn", "HYV4HyperConnection.fn"), Direct("mlp", "rows")),
    **dict.fromkeys(("DeepseekV4HyperHead.hc_fn", "HYV4HyperHead.hc_fn"), Direct("mlp", "rows")),
    **dict.fromkeys(
        ("RecurrentGemmaRglru.input_gate_weight", "RecurrentGemmaRglru.recurrent_gate_weight"),
        Direct("gate", "in-out stack"),
    ),
    **dict.fromkeys(
        ("RecurrentGemmaRglru.input_gate_bias", "RecurrentGemmaRglru.recurrent_gate_bias"), Direct("gate", "rows")
    ),
    **dict.fromkeys(("DbrxExpertGLU.w1", "DbrxExpertGLU.v1"), Direct("expert", "rows")),
    "DbrxExpertGLU.w2": Direct("expert", "in-out stack"),
    **dict.fromkeys(
        ("Llama4TextExperts.gate_up_proj", "Llama4TextExperts.down_proj"), Direct("expert", "in-out stack")
    ),
    **dict.fromkeys(("LongcatFlashExperts.gate_up_proj", "LongcatFlashExperts.down_proj"), Direct("expert", "stack")),
    **dict.fromkeys(
        ("InklingSharedExperts.gate_proj", "InklingSharedExperts.up_proj", "InklingSharedExperts.down_proj"),
        Direct("expert", "stack"),
    ),
    "JetMoeParallelExperts.weight": Direct("expert", "stack"),
    "InklingRelativeLogits.proj": Direct("position-bias", "in-out"),  # (profiles, distances)
    **dict.fromkeys(("DeepseekV4HCACompressor.position_bias", "DeepseekV4CSACompressor.position_bias"), POSITION),
    "DeepseekV4Indexer.position_bias": POSITION,
    "AxialPositionEmbeddings.weights": Direct("embedding", "tokens"),  # Reformer's, one tensor an axis
}

HEAD = {"classifier", "cls_classifier", "distillation_classifier", "score", "lm_head", "qa_outputs", "decoder"}
TOP_LEVEL_HEAD = {"fc", "head", "heads"}
ROUTERS = ("Router", "Gating")  # endings of the names of classes that choose experts
ATTENTION_CLASSES = ("Attention", "AttentionSubsample")
WRAPPERS = {"base_layer", "linear"}  # an inner layer, named by the outer one
MATRIX_CLASSES = {"QuantLinear"}  # linear layers that do not inherit from nn.Linear
ADAPTER_MARKS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}
POSITIONS = ("pos_embed", "position_embed", "positional_embed")
MLP_PLACES = {"mlp", "ffn", "feed_forward"}  # a layer inside one of these does not belong to attention
