"""The responses of a language model to prompts, by greedy decoding: the likeliest next token, one after the other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedadamw.data.conversations import Ids, encode_question
from fedadamw.data.dialogues import encode_opening, encode_prompt
from fedadamw.models.pretrained import NO_LIMIT, Pretrained
from fedadamw.trained.new_samples import MESSAGES, PROMPT, NewSamples
from fedadamw.validation import InputError, check

Row = Mapping[str, Any]


class BadSampleError(InputError):
    """A sample cannot be used; the message says why."""


def encode_row(tokenizer: Any, samples: NewSamples, row: Row) -> Ids:
    """Return the tokens that the model continues for one row; raises BadSampleError if it holds nothing to continue."""
    value = row[samples.columns[0]]
    if samples.kind == MESSAGES:
        try:
            return encode_question(tokenizer, value)
        except InputError as error:
            raise BadSampleError(str(error)) from None
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError(f"column {samples.columns[0]!r} holds {value!r} where a text is expected")
    if samples.extra and row[samples.extra]:
        value = f"{value}\n{row[samples.extra]}"
    ids = encode_prompt(tokenizer, value) if samples.kind == PROMPT else encode_opening(tokenizer, value)
    if not ids:
        raise BadSampleError("the tokenizer leaves nothing of it")
    return ids


def check_length(ids: Ids, limit: int | None, new: int) -> None:
    """Raise BadSampleError if a prompt and `new` tokens after it are more than the model's `limit`."""
    if limit is not None and len(ids) + new > limit:
        raise BadSampleError(f"has {len(ids):,} tokens, and with {new:,} new ones the model takes {limit:,}")


def find_limit(pretrained: Pretrained, new: int) -> int | None:
    """Return how many tokens the model takes, None if it does not say; raises InputError if `new` are too many."""
    limit = getattr(pretrained.config, "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit < NO_LIMIT else None
    check(limit is None or new < limit, f"--max-new-tokens={new}: the model takes {limit} tokens, prompt included")
    return limit


def respond(model: Any, tokenizer: Any, prompts: Sequence[Ids], new: int, size: int) -> Iterator[str]:
    """Return the response to each prompt, of at most `new` tokens; `size` prompts of similar length at a time."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: dict[int, str] = {}
    config = _generation_config(model, tokenizer, new)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        ids, mask = _pad_left([prompts[i] for i in chosen], config.pad_token_id, next(model.parameters()).device)
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        responses.update(zip(chosen, texts, strict=True))
    return (responses[i] for i in range(len(prompts)))


def _generation_config(model: Any, tokenizer: Any, new: int) -> Any:
    """Return the settings of greedy decoding; the model's own may draw at random."""
    from transformers import GenerationConfig

    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    return GenerationConfig(
        max_new_tokens=new, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )


def _pad_left(prompts: Sequence[Ids], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token numbers, padded on the left, and 1 where they are real, (n, length) each."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask
