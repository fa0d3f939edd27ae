"""A language model's answers to prompts, by greedy decoding or drawn at random; and how likely given answers are."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedadamw.randomness import Purpose, torch_seed

Ids = list[int]


class Decoding(NamedTuple):
    """How the next token is chosen."""

    tokens: int  # of the longest answer
    temperature: float = 0.0  # 0: always the likeliest token; 1: drawn from the model's own distribution
    seed: int = 0  # of what is drawn


def respond(model: Any, tokenizer: Any, prompts: Sequence[Ids], decoding: Decoding, size: int) -> Iterator[str]:
    """Return the answer to each prompt; `size` prompts of similar length at a time.

    What is drawn depends on the seed, the prompts and `size`; torch's own generators are left as they were.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, str] = {}
    config, device = _generation_config(model, tokenizer, decoding), next(model.parameters()).device
    for batch, start in enumerate(range(0, len(order), size)):
        chosen = order[start : start + size]
        ids, mask = _pad_left([prompts[i] for i in chosen], config.pad_token_id, device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(torch_seed(decoding.seed, Purpose.ANSWERS, batch))
            last = _last_logits(model, 1, device)
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **last)
        texts = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        answers.update(zip(chosen, texts, strict=True))
    return (answers[i] for i in range(len(prompts)))


def _generation_config(model: Any, tokenizer: Any, decoding: Decoding) -> Any:
    """Return the settings of decoding; the model's own may draw at random, or leave unlikely tokens out."""
    from transformers import GenerationConfig

    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    drawn = {"do_sample": True, "temperature": decoding.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(
        max_new_tokens=decoding.tokens,
        num_beams=1,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        **(drawn if decoding.temperature else {"do_sample": False}),
    )


def _pad_left(prompts: Sequence[Ids], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token numbers, padded on the left, and 1 where they are real, (n, length) each."""
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def log_likelihoods(model: Any, prompts: Sequence[Ids], answers: Sequence[Ids], pad: int, size: int) -> Tensor:
    """Return the log-probability of each answer's tokens after its prompt, summed, (n,); `size` at a time."""
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), len(answers[i])))
    result = torch.zeros(len(prompts), dtype=torch.float64, device=device)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = [prompts[i] + answers[i] for i in chosen]
        length = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], device=device)
        shortest = len(prompts[chosen[0]])
        wanted = _last_logits(model, length - shortest + 1, device)
        logits = model(input_ids=ids, use_cache=False, **wanted).logits  # no token attends to the padding after it
        skipped = length - logits.shape[1]
        for place, i in enumerate(chosen):
            first, last = len(prompts[i]), len(rows[place])
            likely = logits[place, first - 1 - skipped : last - 1 - skipped].double().log_softmax(-1)
            result[i] = likely.gather(-1, ids[place, first:last, None]).sum()
    return result


def _last_logits(model: Any, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Return the arguments with which a model computes only the logits of its last tokens, {} if it cannot.

    They are places: given a number, models slice, and for a slice torch may copy the output layer's weight a text.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return {}
    return {"logits_to_keep": torch.arange(-tokens, 0, device=device)}
