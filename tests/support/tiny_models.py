"""Small models with tokenizers in folders, and small texts: what a hub id would give, made on the spot."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
)

WORDS = ("good", "great", "fine", "bad", "poor", "dull", "film", "plot", "cast", "it", "was", "a", "very", "the")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WIDE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}  # for 4 bits
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(
    *, pad: bool = True, template: str | None = None, limit: int = 64, types: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on a few words."""
    rules = Tokenizer(models.BPE())
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    rules.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=limit,
        **({"pad_token": "<pad>"} if pad else {}),
        **({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if types else {}),
    )
    found.chat_template = template
    if types:  # as BERT's: which of two sentences a token belongs to
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            "$A:0 </s>:0", "$A:0 </s>:0 $B:1 </s>:1", [("</s>", 2)]
        )
    return found


def config(kind: str, sizes: Mapping[str, int] = SIZES):
    """A configuration of `kind` with 2 layers, of width 32 if not of other `sizes`, and nothing dropped at random."""
    words = len(tokenizer())
    if kind in ("bert", "roberta"):
        cls = {"bert": BertConfig, "roberta": RobertaConfig}[kind]
        return cls(
            vocab_size=words,
            max_position_embeddings=66,
            pad_token_id=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **sizes,
        )
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=words, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    common = {"vocab_size": words, "max_position_embeddings": 64, "num_key_value_heads": 2, **sizes}
    if kind == "gemma2":  # tied, soft caps, and a window in every other layer
        return Gemma2Config(
            head_dim=8, query_pre_attn_scalar=8, sliding_window=8, final_logit_softcapping=2.0, **common
        )
    if kind == "granite":
        return GraniteConfig(logits_scaling=8.0, **common)
    if kind == "cohere":
        return CohereConfig(logit_scale=0.25, pad_token_id=1, **common)
    cls = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}[kind]
    return cls(head_dim=sizes["hidden_size"] // 4, **common)


def folder(path: Path, kind: str, sizes: Mapping[str, int] = SIZES, **of_tokenizer) -> str:
    """A folder as `save_pretrained` leaves it: weights, configuration, tokenizer; its path."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = config(kind, sizes)
        model = (AutoModel if kind in ("bert", "roberta") else AutoModelForCausalLM).from_config(made)
    model.save_pretrained(path)
    tokenizer(**of_tokenizer).save_pretrained(path)
    return str(path)


def half_folder(path: Path, kind: str, dtype: torch.dtype = torch.bfloat16, sizes: Mapping[str, int] = SIZES) -> str:
    """As `folder`, with weights in 16 bits."""
    folder(path, kind, sizes)
    auto = AutoModel if kind in ("bert", "roberta") else AutoModelForCausalLM
    auto.from_pretrained(path, dtype=dtype).save_pretrained(path)
    return str(path)


def reviews(path: Path, rows: int = 60, seed: int = 0) -> str:
    """A CSV file of reviews of 2 to 12 words, good ones and bad ones, and by whom; its path."""
    g = torch.Generator().manual_seed(seed)

    def draw(words, count):
        return [words[int(i)] for i in torch.randint(len(words), (count,), generator=g)]

    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "who"])
        for i in range(rows):
            mood = WORDS[:3] if i % 2 else WORDS[3:6]
            length = int(torch.randint(1, 6, (1,), generator=g))
            out.writerow([" ".join(draw(mood, length) + draw(WORDS[6:], length)), i % 2, f"critic {i % 5}"])
    return str(path)


def folders(path: Path, kinds: Iterable[str]) -> Path:
    """Write a model of each kind, and texts for it, into `path`; return it."""
    for kind in kinds:
        folder(path / kind, kind)
    reviews(path / "reviews.csv")
    reviews(path / "more.csv", rows=30, seed=1)
    return path
