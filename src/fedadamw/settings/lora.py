"""The section `lora`: adapters to train instead of the whole model, named as peft names them."""

import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedadamw.settings.section import Section
from fedadamw.validation import InputError, check, shorten

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the output's
Rank = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class LoraSettings(Section):
    """LoRA's settings, as peft names them."""

    r: int = Field(default=16, ge=1, description="Rank of the adapters. Upload and memory grow with it.")
    alpha: float = Field(default=32, gt=0, description="Scale of the adapters: what they add is times alpha / r.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout of the adapters' inputs, from 0 to below 1.")
    target_modules: tuple[str, ...] | str | None = Field(
        default=None,
        description=f"Layers to adapt: a list of names ([query, value]), a pattern that matches whole names, or "
        f"{ALL_LINEAR}. Null: peft's choice for the architecture.",
    )
    rank_pattern: dict[str, Rank] = Field(
        default={},
        description="Other ranks for some layers, by name or pattern of a name's end: {key: 8, 'layer.0.*.query': 4}. "
        "The first that matches counts.",
    )
    alpha_pattern: dict[str, Scale] = Field(
        default={}, description="Other alphas for some layers, as in rank_pattern: {key: 16}."
    )
    rslora: bool = Field(
        default=False,
        description="Scale by alpha / sqrt(r) rather than alpha / r, so that a high rank does not learn slower "
        "(rsLoRA, arXiv 2312.03732).",
    )
    dora: bool = Field(
        default=False,
        description="Train the length of each of a layer's outputs apart from its direction (DoRA, arXiv 2402.09353). "
        "A step takes longer. Not with aggregate=exact or residual.",
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(),
        description="More modules to train whole, beside the head: a list of names, such as [embed_tokens].",
    )

    ranks: dict[Rank, Share] | tuple[Rank, ...] | None = Field(
        default=None,
        description="Other ranks for some clients: shares of the clients, drawn from the seed ({4: 0.5, 16: 0.5}), or "
        "the rank of each client in a list. The largest is r. Null: all have r.",
    )

    aggregate: Literal["factors", "frozen-a", "exact", "residual", "alternate"] = Field(
        default="factors",
        description="How adapters are averaged. factors: the means of A and of B. frozen-a: only B is trained and "
        "sent, half the upload. exact: the mean of the products B A, folded into the base model. residual: the means "
        "of A and of B, and what the mean of the products has beyond theirs goes into the base model. "
        "alternate: A and B are trained in turn, B in the first round, A in the second, and the other rests.",
    )

    @property
    def changes_base(self) -> bool:
        """Whether rounds change the frozen weights below the adapters."""
        return self.aggregate in ("exact", "residual")

    @field_validator("rank_pattern", mode="before")
    @classmethod
    def _check_rank_pattern(cls, value: object) -> object:
        return _check_patterns("lora.rank_pattern", value)

    @field_validator("alpha_pattern", mode="before")
    @classmethod
    def _check_alpha_pattern(cls, value: object) -> object:
        return _check_patterns("lora.alpha_pattern", value)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _check_targets(cls, value: object) -> object:
        """Accept names, a pattern or all-linear; the latter may also stand alone in a list."""
        names = list(value) if isinstance(value, list | tuple) else [value]
        valid = bool(names) and all(isinstance(name, str) and name for name in names)
        check(value is None or valid, f"lora.target_modules={value}: give names in a list, a pattern, or {ALL_LINEAR}")
        every = any(str(name).lower() == ALL_LINEAR for name in names)
        check(not every or len(names) == 1, f"lora.target_modules: {ALL_LINEAR} stands alone, without other names")
        return ALL_LINEAR if every else value

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _check_modules(cls, value: object) -> object:
        """Accept names in a list, and null, which is peft's word for none."""
        names = [] if value is None else value
        valid = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
        check(valid, f"lora.modules_to_save={shorten(value)}: give names in a list, such as [embed_tokens]")
        return names

    @model_validator(mode="before")
    @classmethod
    def _take_largest_rank(cls, values: Any) -> Any:
        """With `ranks` and without `r`, `r` is the largest of them."""
        ranks = values.get("ranks") if isinstance(values, dict) else None
        if not ranks or not isinstance(ranks, dict | list | tuple) or "r" in values:
            return values
        with suppress(TypeError, ValueError):  # reported when `ranks` is checked
            return {**values, "r": max(int(rank) for rank in ranks)}
        return values

    @field_validator("ranks", mode="before")
    @classmethod
    def _check_ranks(cls, value: object) -> object:
        """Accept ranks with shares that add up to 1, or ranks; keys of JSON are words."""
        if value is None:
            return None
        given = f"lora.ranks={shorten(value)}"
        many = isinstance(value, dict | list | tuple) and len(value) > 0
        check(many, f"{given}: give {{RANK: SHARE, ...}}, or the rank of each client in a list")
        ranks = [int(rank) if str(rank).isdecimal() else 0 for rank in value]  # type: ignore[attr-defined]  # as checked
        shares = list(value.values()) if isinstance(value, dict) else [1.0]
        numbers = all(isinstance(share, int | float) and 0 < share <= 1 for share in shares)
        check(min(ranks) >= 1 and numbers, f"{given}: a rank is a number from 1, a share one above 0 to 1")
        check(abs(sum(shares) - 1) < 1e-6, f"lora.ranks: the shares add up to {sum(shares):g}, not 1")
        return dict(zip(ranks, shares, strict=True)) if isinstance(value, dict) else ranks

    @model_validator(mode="after")
    def _check_together(self) -> "LoraSettings":
        if self.ranks is not None:
            largest = max(self.ranks)
            check(self.r == largest, f"lora.r={self.r}: the largest of lora.ranks is {largest}; set lora.r={largest}")
            check(not self.rank_pattern, "lora.ranks and lora.rank_pattern: give ranks by client or by layer, not both")
            halves = "lora.aggregate='alternate' has adapters of one rank: leave out lora.ranks"
            check(self.aggregate != "alternate", halves)
        dense = f"lora.aggregate={self.aggregate!r} averages products B A; with lora.dora=true layers are no such sums"
        check(not (self.dora and self.changes_base), dense)
        return self


def _check_patterns(setting: str, value: object) -> object:
    """Return `value`, {} for null, which is peft's word for none; InputError if a key is not a valid pattern."""
    for pattern in value if isinstance(value, dict) else ():
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise InputError(f"{setting}: {pattern!r} is not a valid pattern ({error})") from None
    return {} if value is None else value
