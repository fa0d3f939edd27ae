"""Text classifiers and language models of transformers, with their tokenizers: any hub id or folder."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedadamw.models.loading import config_from, in_one_line, loaded, pretrained, unloaded
from fedadamw.models.tokenizers import _check_padding
from fedadamw.validation import InputError, check

Mask = Literal["4d", "none", "2d"]


class Form(NamedTuple):
    """How texts are given to a model."""

    pad: int  # the number of the padding token
    max_length: int  # tokens
    mask: Mask = "none"  # 4d: (n, 1, 1, length), ready for attention; none: padding comes last, and is not seen
    types: bool = False  # whether it is told which sentence a token belongs to

    def inputs(self, ids: Tensor, types: Tensor, real: Tensor) -> tuple[Tensor, ...]:
        """What the model takes, of token numbers, types and whether they are real, (n, length) each."""
        masks = {"4d": (real[:, None, None, :],), "none": (), "2d": (real.long(),)}[self.mask]
        return (ids, *masks, *((types.long(),) if self.types else ()))

    def logits(self, model: Any, inputs: Sequence[Tensor], **settings: Any) -> Tensor:
        """What the model says of such inputs; `settings` of its call."""
        names = ["input_ids", *(["attention_mask"] if self.mask != "none" else []), "token_type_ids"]
        out = model(**dict(zip(names, inputs, strict=False)), **settings)
        return out.logits  # type: ignore[no-any-return]


class Text(NamedTuple):
    """A model of texts, and how they are given to it."""

    model: nn.Module
    form: Form
    fresh: Sequence[str] = ()  # modules whose weights are not from where the others are


def classifier(
    name: str,
    classes: Sequence[str],
    tokenizer: Any,
    max_length: int,
    *,
    numbers: bool = False,
    fresh: bool = False,
) -> Text:
    """A text classifier with a fresh head where it has none for these classes.

    numbers: it predicts a number in place of a class. fresh: the configuration's shape with fresh weights.
    """
    from transformers import AutoModelForSequenceClassification as Auto

    if tokenizer.pad_token_id is None:
        raise InputError(
            f"model.name={name!r}: its tokenizer has no padding token; name one of its own with "
            f"model.pad_token{f', such as {tokenizer.eos_token}' if tokenizer.eos_token else ''}"
        )
    _check_padding(name, tokenizer)
    labels: dict[str, Any] = {"num_labels": 1}
    if not numbers:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}
    model, own, config = _model(Auto, name, fresh, pad_token_id=tokenizer.pad_token_id, **labels)
    types = "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1
    form = Form(tokenizer.pad_token_id, max_length, types=types)
    _check_words(name, model, tokenizer)
    return Text(model, form._replace(mask=_mask(name, model, form)), own)


def causal(name: str, tokenizer: Any, max_length: int, *, fresh: bool = False) -> Text:
    """A language model that predicts the next token."""
    from transformers import AutoModelForCausalLM

    model, own, _ = _model(AutoModelForCausalLM, name, fresh)
    _check_words(name, model, tokenizer)
    _check_causal(name, model)
    return Text(model, Form(tokenizer.pad_token_id or 0, max_length), own)


def _model(auto: Any, name: str, fresh: bool, **settings: Any) -> tuple[Any, list[str], Any]:  # noqa: FBT001
    """The model, the modules whose weights are fresh in it, and its configuration."""
    config = loaded("model.name", name, lambda place: config_from(place, **settings))

    if fresh:
        return loaded("model.name", name, lambda _: unloaded(auto, config, dtype=torch.float32)), [], config
    return *loaded("model.name", name, lambda place: pretrained(auto, place, config)), config


def _check_words(name: str, model: Any, tokenizer: Any) -> None:
    """Raise InputError where the tokenizer's words cannot be the model's: more of them, or not half as many."""
    rows = model.get_input_embeddings().weight.shape[0]
    check(
        rows // 2 < len(tokenizer) <= rows,
        f"model.name={name!r}: its tokenizer knows {len(tokenizer):,} tokens, the model {rows:,}: they are not of one "
        "model; name the right one with model.tokenizer",
    )


def _check_causal(name: str, model: Any) -> None:
    """Raise InputError where a later token changes what the model says of the earlier ones."""
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(8)[None] * 7 % words
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 3) % words
    training = model.training
    model.eval()
    with in_one_line(f"model.name={name!r}: does not take a short text"), torch.no_grad():
        a, b = (model(input_ids=i).logits[:, :-1] for i in (ids, other))
    model.train(training)
    check(
        torch.allclose(a, b, rtol=1e-3, atol=1e-5),
        f"model.name={name!r}: it sees later tokens, so it cannot predict the next",
    )


def _mask(name: str, model: nn.Module, form: Form) -> Mask:
    """The first kind of mask under which the padding of a text changes nothing, found in a trial."""
    training = model.training
    model.eval()
    words: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.arange(2 * 8).view(2, 8) * 7 % (words - 1)
    ids = torch.where(ids == form.pad, (form.pad + 1) % words, ids)
    real = torch.tensor([[1] * 8, [1] * 5 + [0] * 3], dtype=torch.bool)
    short = torch.where(real, ids, form.pad)
    types = torch.zeros_like(ids)
    try:
        with in_one_line(f"model.name={name!r}: does not take two short texts"), torch.no_grad():
            alone = [form._replace(mask="none").inputs(i[:, :n], i[:, :n] * 0, i[:, :n]) for i, n in _each(ids)]
            expected = torch.cat([form._replace(mask="none").logits(model, inputs) for inputs in alone])
            kinds: tuple[Mask, ...] = ("4d", "none", "2d")
            for kind in kinds:
                tried = form._replace(mask=kind)
                found = tried.logits(model, tried.inputs(short, types, real))
                if torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
                    return kind
    finally:
        model.train(training)
    raise InputError(f"model.name={name!r}: padding a short text changes what the model says of it")


def _each(ids: Tensor) -> list[tuple[Tensor, int]]:
    return [(ids[:1], 8), (ids[1:], 5)]
