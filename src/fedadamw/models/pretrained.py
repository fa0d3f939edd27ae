"""A pretrained model's configuration, tokenizer and image processor, each read at most once."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fedadamw.models.dtypes import Quantize, Weights
from fedadamw.models.gguf import is_gguf
from fedadamw.models.loading import build_fresh, load_config, load_named, load_tokenizer, load_weights, own_type
from fedadamw.models.processor import Processor, read_processor
from fedadamw.models.quantized import draw_quantised, own_quantisation, pack, quantisation, settle
from fedadamw.settings.data import AUTO_LENGTH
from fedadamw.validation import check

NO_LIMIT = 10**6  # a tokenizer without a length limit reports a number above this
DEFAULT_LENGTH = 512  # tokens, if neither the model nor its tokenizer has a limit


class Pretrained:
    """The model of a folder or hub id; each part is read when first needed.

    tokenizer: another folder or hub id to take the tokenizer from. pad_token: the token to pad with, if the tokenizer
    has no padding token. classes: of the trained head, if they are not those of the configuration.
    """

    def __init__(
        self,
        name: str,
        tokenizer: str | None = None,
        pad_token: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.name, self._classes = name, classes
        self._tokenizer_source = ("model.name", name) if tokenizer is None else ("model.tokenizer", tokenizer)
        self._pad_token = pad_token

    @cached_property
    def config(self) -> Any:
        """The configuration, as transformers reads it."""
        config = load_named("model.name", self.name, load_config)
        if self._classes is not None:
            config.id2label = dict(enumerate(self._classes))
            config.label2id = {name: i for i, name in enumerate(self._classes)}
        return config

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the weights in its files, float32 for a .gguf file, whose weights are unpacked."""
        config = self.config
        return load_named("model.name", self.name, lambda place: own_type(place, config))

    @cached_property
    def quantised(self) -> Quantize:
        """How its files are quantised, .gguf files apart; raises InputError if in a way that is not read."""
        return "none" if is_gguf(self.name) else own_quantisation(self.name, self.config)

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer; raises InputError if it has none, or no such padding token."""
        setting, name = self._tokenizer_source
        # if the folder has only a vocabulary, the model's configuration names the tokenizer's class
        config = self.config
        tokenizer = load_named(setting, name, lambda place: _try(load_tokenizer(place, config)), "its tokenizer")
        check(tokenizer.is_fast, f"{setting}={name!r}: its tokenizer has no fast form (tokenizer.json)")
        if self._pad_token is not None:
            check(
                self._pad_token in tokenizer.get_vocab(),
                f"model.pad_token={self._pad_token!r} is not among the tokenizer's {len(tokenizer):,} tokens",
            )
            tokenizer.pad_token = self._pad_token
        return tokenizer

    @cached_property
    def processor(self) -> Processor:
        """The steps of the model's own image processor."""
        return read_processor(self.name, self.config)

    @cached_property
    def positions_after_padding(self) -> int | None:
        """Usable positions of a model that counts them from the padding token's number, as RoBERTa; else None."""
        from transformers import AutoModel

        with torch.device("meta"):
            skeleton = load_named("model.name", self.name, lambda _: build_fresh(AutoModel, self._config_with()))
        for path, module in skeleton.named_modules():
            is_positions = path.endswith("position_embeddings") and isinstance(module, nn.Embedding)
            if is_positions and module.padding_idx is not None:
                return int(module.num_embeddings - module.padding_idx - 1)
        return None

    @property
    def longest(self) -> int:
        """The tokens of the longest text that the positions and the tokenizer allow."""
        limits = [n for n in (self.positions, self.tokenizer.model_max_length) if n is not None and n < NO_LIMIT]
        return min(limits, default=DEFAULT_LENGTH)

    @property
    def positions(self) -> int | None:
        """The tokens that its positions allow; None if they have no limit."""
        return self.positions_after_padding or getattr(self.config, "max_position_embeddings", None)

    def max_length(self, wanted: int | str | None) -> int:
        """Return the tokens of the longest text of a run; `wanted`: as data.max_length has it."""
        if isinstance(wanted, int):
            positions = self.positions
            fits = positions is None or wanted <= positions
            check(fits, f"data.max_length={wanted}: {self.name!r} takes {positions} tokens")
            return wanted
        return self.longest if wanted is None else min(self.longest, AUTO_LENGTH)

    def build(self, auto: Any, weights: Weights, **changes: object) -> tuple[Any, list[str]]:
        """Return a model of class `auto` (AutoModel, ...), and the modules that the pretrained weights lack.

        changes: of the configuration, such as the number of classes.
        """
        own = self.quantised
        asked = weights.quantize in ("none", own) or own == "none"
        check(asked, f"model.quantize={weights.quantize}: the weights of {self.name!r} are in {own} already")
        kind, config = weights.quantize if own == "none" else own, self._config_with(**changes)
        if kind != "none":
            return self._build_quantised(auto, weights._replace(quantize=kind), config)
        if weights.fresh:
            return load_named("model.name", self.name, lambda _: build_fresh(auto, config, dtype=weights.dtype)), []
        return load_named("model.name", self.name, lambda place: load_weights(auto, place, config, weights.dtype))

    def _build_quantised(self, auto: Any, weights: Weights, config: Any) -> tuple[Any, list[str]]:
        """As `build`; quantised while it is loaded or drawn, on the CPU."""
        skeleton = self._skeleton(auto, config, weights.dtype)
        how = quantisation(skeleton, weights)
        if weights.fresh:
            return load_named("model.name", self.name, lambda _: draw_quantised(skeleton, how)), []
        settings: dict[str, object] = {} if is_gguf(self.name) else {"device_map": {"": "cpu"}}
        if self.quantised == "none" and not is_gguf(self.name):
            settings["quantization_config"] = how
        model, fresh = load_named(
            "model.name", self.name, lambda place: load_weights(auto, place, config, weights.dtype, **settings)
        )
        return pack(model, how) if is_gguf(self.name) else settle(model), fresh

    def skeleton(self, auto: Any, dtype: torch.dtype, **changes: object) -> Any:
        """Return a model of class `auto` without weights, on the meta device; changes: as of `build`."""
        return self._skeleton(auto, self._config_with(**changes), dtype)

    def _skeleton(self, auto: Any, config: Any, dtype: torch.dtype) -> Any:
        with torch.device("meta"):
            return load_named("model.name", self.name, lambda _: build_fresh(auto, copy.deepcopy(config), dtype=dtype))

    def _config_with(self, **changes: object) -> Any:
        """Return a copy of the configuration, which the model may modify, with `changes` of settings that it has."""
        config = copy.deepcopy(self.config)
        for name, value in changes.items():
            if hasattr(config, name):  # as from_pretrained does
                setattr(config, name, value)
        return config


def _try(tokenizer: Any) -> Any:
    """Return the tokenizer after one use: some load and then fail on any text."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.encode("a text")
    if not isinstance(tokenizer.model_max_length, int | float):
        raise TypeError(f"model_max_length is {tokenizer.model_max_length!r}, not a number")
    return tokenizer
