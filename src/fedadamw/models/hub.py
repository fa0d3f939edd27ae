"""Any transformers model as a skeleton without weights: enough to see its blocks, whatever its size."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedadamw.models import vision
from fedadamw.models.loading import config_from, place_of, quiet_libraries, read, unloaded
from fedadamw.validation import shorten

SHAPE = vision.ImageShape(size=32, channels=3, classes=10)
MICRO = vision.ImageShape(size=8, channels=1, classes=10)


def skeleton(name: str) -> nn.Module:
    """The model `name` on the meta device: one of this package's, a folder, a transformers type (bert) or a hub id."""
    quiet_libraries()
    with torch.device("meta"):
        if name in vision.NAMES:
            return vision.build(name, MICRO if name == "vit-micro" else SHAPE).model
        return _transformers(name)


def _transformers(name: str) -> nn.Module:
    from transformers import CONFIG_MAPPING, AutoConfig

    if name in CONFIG_MAPPING and not (Path(name) / "config.json").is_file():
        return _from_config(AutoConfig.for_model(name))
    place, what = name if os.path.isfile(name) else place_of("model", name), f"model {shorten(name)}"  # noqa: PTH113  (Path.is_file raises if a name is too long)
    if not os.path.exists(place):  # noqa: PTH110
        what += f" is none of {', '.join(vision.NAMES)}, no type of transformers (bert, llama, ...), no folder, and"
    return read(what, place, lambda: _from_config(config_from(place)))


def _from_config(config: Any) -> nn.Module:
    """The class the configuration names; else an image or text classifier, else a language model."""
    import transformers
    from transformers import AutoModel, PreTrainedModel
    from transformers.models.auto import modeling_auto as auto

    for architecture in config.architectures or ():
        named = getattr(transformers, str(architecture), None)  # any word, as far as a folder goes
        if isinstance(named, type) and issubclass(named, PreTrainedModel):
            return named(config)  # type: ignore[no-any-return]
    config.architectures = []  # AutoModel iterates over it
    kind = config.model_type
    classifier = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES  # an encoder: to be classified with
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
            return unloaded(cls, config)  # type: ignore[no-any-return]
    return unloaded(AutoModel, config)  # type: ignore[no-any-return]
