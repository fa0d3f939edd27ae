"""Build any transformers model without weights, to inspect its blocks whatever its size."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedadamw.models import vision
from fedadamw.models.gguf import check_gguf, is_gguf
from fedadamw.models.loading import build_fresh, load_config, load_place, locate, silence_libraries
from fedadamw.validation import shorten

SHAPE = vision.ImageShape(size=32, channels=3, classes=10)
MICRO = vision.ImageShape(size=8, channels=1, classes=10)


def build_skeleton(name: str) -> nn.Module:
    """Build `name` on the meta device: a model of this package, a folder or .gguf file, a type (bert), a hub id."""
    silence_libraries()
    with torch.device("meta"):
        if name in vision.NAMES:
            return vision.build(name, MICRO if name == "vit-micro" else SHAPE).model
        return _build_transformers(name)


def _build_transformers(name: str) -> nn.Module:
    from transformers import CONFIG_MAPPING, AutoConfig

    if name in CONFIG_MAPPING and not (Path(name) / "config.json").is_file():
        return build_from_config(AutoConfig.for_model(name))
    is_config = os.path.isfile(name) and not is_gguf(name)  # noqa: PTH113  (Path.is_file raises if a name is too long)
    place, what = name if is_config else locate("model", name), f"model {shorten(name)}"
    if is_gguf(place):
        check_gguf(what, place)
    elif not os.path.exists(place):  # noqa: PTH110
        what += f" is none of {', '.join(vision.NAMES)}, no type of transformers (bert, llama, ...), no folder, and"
    return load_place(what, place, lambda: build_from_config(load_config(place)))


def build_from_config(config: Any) -> nn.Module:
    """Build the class that the configuration names, else an image or text classifier, else a language model."""
    import transformers
    from transformers import AutoModel, PreTrainedModel
    from transformers.models.auto import modeling_auto as auto

    for architecture in config.architectures or ():
        cls = getattr(transformers, str(architecture), None)  # the folder may name anything
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls(config)  # type: ignore[no-any-return]
    config.architectures = []  # AutoModel iterates over it
    kind = config.model_type
    classifier = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES  # an encoder
    for names, cls, wanted in (
        (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, transformers.AutoModelForImageClassification, True),
        (
            auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            transformers.AutoModelForSequenceClassification,
            classifier,
        ),
        (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM, True),
    ):
        if wanted and kind in names:
            return build_fresh(cls, config)  # type: ignore[no-any-return]
    return build_fresh(AutoModel, config)  # type: ignore[no-any-return]
