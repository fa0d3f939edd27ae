"""The section `lora`: adapters to train instead of the whole model, named as peft names them."""

from typing import Literal

from pydantic import Field, field_validator

from fedadamw.settings.section import Section
from fedadamw.validation import check

ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the output's


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

    aggregate: Literal["factors", "frozen-a", "exact"] = Field(
        default="factors",
        description="How adapters are averaged. factors: the means of A and of B. frozen-a: only B is trained and "
        "sent, half the upload. exact: the mean of the products B A, folded into the base model.",
    )

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
