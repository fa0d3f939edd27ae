"""The section `model`: which model, and how it is cut into blocks."""

from typing import Literal

from pydantic import Field, field_validator

from fedadamw.settings.section import Section
from fedadamw.validation import check_one_of

AUTO: Literal["auto"] = "auto"
ALIASES = {"bf16": "bfloat16"}  # other words for types


class ModelSettings(Section):
    """Which model, and how it is cut into blocks."""

    name: str = Field(
        default="vit-micro",
        description="A built-in image classifier (`fedadamw list` names them), a hub id, a folder, or "
        "package:NAME/FOLDER for a folder inside an installed package; a .gguf file: ./FILE.gguf, "
        "package:NAME/FILE.gguf or owner/name/FILE.gguf of the hub. A run's folder: the model that the run trained.",
    )
    tokenizer: str | None = Field(
        default=None, description="For texts: hub id or folder of the tokenizer. Null: the model's own."
    )
    pad_token: str | None = Field(
        default=None,
        description="For texts: padding token, one of the tokenizer's tokens. Needed only if the tokenizer has none.",
    )
    fresh: bool = Field(
        default=False,
        description="Take only the architecture of a folder's or hub id's model and draw fresh weights.",
    )
    best: bool = Field(
        default=False,
        description="Of a run's folder: start from its best round, which keep_best kept, instead of the last.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default=AUTO,
        description="Type of the weights that are not trained. auto: with LoRA the type of the model's files, bfloat16 "
        "if that is float16, else float32. What is trained is float32 in any case. bfloat16 and float16 halve a base's "
        "memory.",
    )
    quantize: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="With LoRA: keep the linear layers of the base, but the output's, in few bits, by bitsandbytes: "
        "8bit (LLM.int8) or 4bit (NF4, scales quantised too). Less memory, slower steps.",
    )
    depth: int | None = Field(
        default=None, ge=1, description="Layers of a built-in ViT. Null: the depth that its name stands for."
    )
    norm: Literal["group", "batch"] = Field(
        default="group",
        description="Normalisation of a built-in ResNet: GroupNorm or BatchNorm. BatchNorm's statistics suffer if "
        "clients hold different classes.",
    )
    blocks: str = Field(
        default="paper",
        description="How parameters are cut into the blocks that share a second moment. paper: as published; coarse: "
        "larger blocks; tensor: one block for each tensor; coordinate: one for each number.",
        json_schema_extra={"enum": ["paper", "coarse", "tensor", "coordinate"]},  # GRANULARITIES, without torch
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _read_alias(cls, value: object) -> object:
        return ALIASES.get(value, value) if isinstance(value, str) else value

    @field_validator("blocks")
    @classmethod
    def _check_granularity(cls, value: str) -> str:
        from fedadamw.blocks.cuts import GRANULARITIES  # which imports torch

        check_one_of("model.blocks", value, GRANULARITIES)
        return value
