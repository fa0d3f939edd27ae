"""Tokenizers: loaded, limited, padded."""

from typing import Any

import torch
from torch import nn

from fedadamw.models.loading import config_from, loaded, tokenizer_from, unloaded
from fedadamw.validation import check

NO_LIMIT = 10**6  # a tokenizer that knows no limit says a number beyond this


def tokenizer_of(model: str, tokenizer: str | None = None, pad_token: str | None = None) -> Any:
    """The tokenizer of a model's hub id or folder, or the one of `tokenizer`; `pad_token`: what it pads with."""
    setting, name = ("model.name", model) if tokenizer is None else ("model.tokenizer", tokenizer)
    # a folder of nothing but words and rules does not say what they are: the model's configuration does
    config = loaded("model.name", model, config_from)
    found = loaded(setting, name, lambda place: _tried(tokenizer_from(place, config)), "its tokenizer")
    check(found.is_fast, f"{setting}={name!r}: its tokenizer has no fast form (tokenizer.json)")
    if pad_token is not None:
        check(
            pad_token in found.get_vocab(),
            f"model.pad_token={pad_token!r} is not among the {len(found):,} tokens that there are",
        )
        found.pad_token = pad_token
    return found


def _tried(tokenizer: Any) -> Any:
    """The tokenizer, of which some are read and yet fail at a text."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.encode("a text")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise TypeError(f"model_max_length is {tokenizer.model_max_length!r}, and no number")
    return tokenizer


def max_length_of(name: str, tokenizer: Any, wanted: int | None) -> int:
    """Tokens of the longest text: `wanted`, or what the positions and the tokenizer allow; no weights are read."""
    config = loaded("model.name", name, config_from)
    positions = _padded_positions(name, config) or getattr(config, "max_position_embeddings", None)
    if wanted is None:
        limits = [n for n in (positions, tokenizer.model_max_length) if n is not None and n < NO_LIMIT]
        return min(limits, default=512)
    check(positions is None or wanted <= positions, f"data.max_length={wanted}: {name!r} takes {positions} tokens")
    return wanted


def _check_padding(name: str, tokenizer: Any) -> None:
    """Raise InputError where another padding than its own would move a model's positions."""
    config = loaded("model.name", name, config_from)
    own = getattr(config, "pad_token_id", None)
    moved = own is not None and own != tokenizer.pad_token_id and _padded_positions(name, config) is not None
    check(not moved, f"model.pad_token={tokenizer.pad_token!r}: {name!r} counts positions from its own, token {own}")


def _padded_positions(name: str, config: Any) -> int | None:
    """Positions of a model that counts them from after the padding's number, as RoBERTa does; None for others."""
    from transformers import AutoModel

    with torch.device("meta"):
        skeleton = loaded("model.name", name, lambda _: unloaded(AutoModel, config))
    for path, module in skeleton.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return None
