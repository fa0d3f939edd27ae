"""Text classifiers and language models of transformers, and the inputs that they take."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fedadamw.models.dtypes import Weights, is_half
from fedadamw.models.loading import as_input_error
from fedadamw.models.output_layer import OutputLayer, find_output_layer
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import row_by_row
from fedadamw.validation import InputError, check

Mask = Literal["4d", "none", "2d"]
MIXED = 0.1  # of the largest logit: texts that see each other change it by 0.6 or more, rounding by far less


class Form(NamedTuple):
    """The inputs that a model takes for a batch of texts."""

    pad: int  # the padding token's number
    max_length: int  # tokens
    mask: Mask = "none"  # 4d: (n, 1, 1, length), as attention uses it; none: padding comes last and is not attended to
    types: bool = False  # whether it takes token types, which tell the two texts of a pair apart
    output: OutputLayer | str = ""  # of a language model; or why its logits are computed whole
    masks_rows: bool = False  # whether it takes a mask (rows, 1, length, length) that keeps packed texts apart

    def inputs(self, ids: Tensor, types: Tensor, real: Tensor) -> tuple[Tensor, ...]:
        """Return the model's inputs from token numbers, types, and which tokens are not padding, (n, length) each."""
        masks = {"4d": (real[:, None, None, :],), "none": (), "2d": (real.long(),)}[self.mask]
        return (ids, *masks, *((types.long(),) if self.types else ()))

    def logits(self, model: Any, inputs: Sequence[Tensor], **settings: object) -> Tensor:
        """Return the model's logits; `settings` are passed to its forward."""
        names = ["input_ids", *(["attention_mask"] if self.mask != "none" else []), "token_type_ids"]
        out = model(**dict(zip(names, inputs, strict=False)), **settings)
        return out.logits  # type: ignore[no-any-return]


class TextModel(NamedTuple):
    """A text model, and the inputs that it takes."""

    model: nn.Module
    form: Form
    fresh: Sequence[str] = ()  # modules that the pretrained weights lack


def build_classifier(
    pretrained: Pretrained,
    classes: Sequence[str],
    max_length: int,
    weights: Weights = Weights(),  # noqa: B008  (a tuple)
    *,
    numbers: bool = False,
) -> TextModel:
    """Build a text classifier, with a fresh head if its own has other classes.

    numbers: it predicts a number instead of a class.
    """
    from transformers import AutoModelForSequenceClassification as Auto

    tokenizer = pretrained.tokenizer
    _check_padding(pretrained)
    labels: dict[str, Any] = {"num_labels": 1}
    if not numbers:
        labels = {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}
    model, fresh_modules = pretrained.build(Auto, weights, pad_token_id=tokenizer.pad_token_id, **labels)
    types = "token_type_ids" in tokenizer.model_input_names and getattr(pretrained.config, "type_vocab_size", 0) > 1
    form = Form(tokenizer.pad_token_id, max_length, types=types)
    _check_vocabulary(pretrained, model)
    return TextModel(model, form._replace(mask=_find_mask(pretrained.name, model, form, weights)), fresh_modules)


def build_language_model(pretrained: Pretrained, max_length: int, weights: Weights = Weights()) -> TextModel:  # noqa: B008
    """Build a language model, which predicts the next token."""
    from transformers import AutoModelForCausalLM

    model, fresh_modules = pretrained.build(AutoModelForCausalLM, weights)
    _check_vocabulary(pretrained, model)
    output = _try_language_model(pretrained.name, model, weights)
    return TextModel(model, Form(pretrained.tokenizer.pad_token_id or 0, max_length, output=output), fresh_modules)


def try_packing(name: str, model: Any, max_length: int, weights: Weights = Weights()) -> bool:  # noqa: B008
    """Return whether a mask keeps several texts in one row apart; else their positions alone do.

    Raises InputError if positions do not. transformers makes masks from them, but not of stacked clients.
    """
    ids = torch.arange(8)[None] * 7 % model.get_input_embeddings().weight.shape[0]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2]])
    mask = torch.block_diag(torch.ones(5, 5).tril(), torch.ones(3, 3).tril()).bool()[None, None]
    training = model.training
    model.eval()
    with as_input_error(f"data.packing: {name!r} fails on two texts in one row"), torch.no_grad(), row_by_row(model):
        alone = torch.cat([model(input_ids=part).logits for part in (ids[:, :5], ids[:, 5:])], 1)
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        masked = packed
        if explicit := _attends_by_mask(model.config.get_text_config(), max_length):
            masked = model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
    model.train(training)
    apart, by_mask = (_is_close(logits, alone, weights, absolute=1e-4, share=MIXED) for logits in (packed, masked))
    check(apart, f"data.packing: {name!r} does not keep two texts in one row apart")
    return explicit and by_mask


def _attends_by_mask(config: Any, max_length: int) -> bool:
    """Return whether all layers of a model take one mask of bools: none has a window that is shorter than a text."""
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return config._attn_implementation == "sdpa" and all(not window or window >= max_length for window in windows)


def _check_padding(pretrained: Pretrained) -> None:
    """Raise InputError if there is no padding token, or it is not the one from which the model counts positions."""
    tokenizer, name = pretrained.tokenizer, pretrained.name
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"model.name={name!r}: its tokenizer has no padding token; name one of its tokens with "
            f"model.pad_token{f', such as {tokenizer.eos_token}' if tokenizer.eos_token else ''}"
        )
    usual = getattr(pretrained.config, "pad_token_id", None)
    moved = usual not in (None, tokenizer.pad_token_id) and pretrained.positions_after_padding is not None
    check(not moved, f"model.pad_token={tokenizer.pad_token!r}: {name!r} counts positions from its token {usual}")


def _check_vocabulary(pretrained: Pretrained, model: Any) -> None:
    """Raise InputError if the tokenizer has more tokens than the model, or less than half as many."""
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(pretrained.tokenizer)
    check(
        rows // 2 < tokens <= rows,
        f"model.name={pretrained.name!r}: its tokenizer has {tokens:,} tokens, the model {rows:,}: they do not belong "
        "together; name the right tokenizer with model.tokenizer",
    )


def _try_language_model(name: str, model: Any, weights: Weights) -> OutputLayer | str:
    """Return its output layer, see `find_output_layer`; raises InputError if a later token changes earlier logits."""
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(8)[None] * 7 % words
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 3) % words
    training = model.training
    model.eval()
    with as_input_error(f"model.name={name!r}: fails on a short text"), torch.no_grad(), row_by_row(model):
        a, b = (model(input_ids=i).logits for i in (ids, other))
        output = find_output_layer(model, ids, a)
    model.train(training)
    check(
        _is_close(a[:, :-1], b[:, :-1], weights, same_shapes=True),
        f"model.name={name!r}: it attends to later tokens, so it cannot predict the next",
    )
    return output


def _find_mask(name: str, model: nn.Module, form: Form, weights: Weights) -> Mask:
    """Return the first kind of mask under which padding does not change the logits, found by trying two short texts."""
    training = model.training
    model.eval()
    words: int = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.arange(2 * 8).view(2, 8) * 7 % (words - 1)
    ids = torch.where(ids == form.pad, (form.pad + 1) % words, ids)
    real = torch.tensor([[1] * 8, [1] * 5 + [0] * 3], dtype=torch.bool)
    padded, types = torch.where(real, ids, form.pad), torch.zeros_like(ids)
    unmasked, kinds = form._replace(mask="none"), get_args(Mask)
    try:
        with as_input_error(f"model.name={name!r}: fails on two short texts"), torch.no_grad(), row_by_row(model):
            alone = [unmasked.inputs(i, i * 0, i) for i in (ids[:1], ids[1:, :5])]
            expected = torch.cat([unmasked.logits(model, inputs) for inputs in alone])
            for kind in kinds:
                masked = form._replace(mask=kind)
                logits = masked.logits(model, masked.inputs(padded, types, real))
                if _is_close(logits, expected, weights):
                    return kind  # type: ignore[no-any-return]
    finally:
        model.train(training)
    raise InputError(f"model.name={name!r}: padding a short text changes this model's output")


def _is_close(
    found: Tensor,
    expected: Tensor,
    weights: Weights,
    *,
    same_shapes: bool = False,
    absolute: float = 1e-5,
    share: float = 0.03,
) -> bool:
    """Whether logits are the same up to rounding, which differs little between batches of the `same_shapes`.

    share: of the largest logit, that rounding in few bits may change.
    """
    if same_shapes or (weights.quantize != "8bit" and not is_half(weights.dtype)):
        return torch.allclose(found, expected, rtol=1e-3, atol=absolute)
    return bool((found - expected).abs().max() <= share * expected.abs().max())
