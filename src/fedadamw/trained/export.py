"""Export a trained model as a folder that `from_pretrained` of transformers or peft loads, with a model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fedadamw.data.image_decoding import CROPPED
from fedadamw.io.disk import new_folder
from fedadamw.models.loading import is_local
from fedadamw.models.quantized import merge
from fedadamw.models.resizing import ResizeCrop
from fedadamw.models.vision import NAMES, RESNETS, ImageModel
from fedadamw.prepare import images
from fedadamw.prepare.architecture import is_run, resolve_model
from fedadamw.prepare.base import choose_weights
from fedadamw.prepare.paths import make_portable, make_settings_portable, replace_model_paths
from fedadamw.prepare.problem import ImageFacts
from fedadamw.trained.card import write_card
from fedadamw.trained.load import FACTS, ExportFacts, Trained
from fedadamw.validation import InputError, check

KEPT_PROCESSORS = ("EfficientNet", "MobileViT")  # with steps that CLIP's lacks, so not replaced by it


def export(trained: Trained, to: Path, *, merged: bool = False, shared: bool = False) -> str:
    """Write the model to the new folder `to`, completely or not at all; return in words what was written.

    A model with adapters is written as an adapter, or with `merged` as a whole model: always so if its base exists
    nowhere else (it was fresh, or rounds changed it). shared: it will be uploaded, so an adapter's base must
    be on the hub.
    """
    experiment = trained.experiment
    to = to.absolute()
    name = resolve_model(experiment.model).name
    check(
        name not in RESNETS,
        f"{name}: its stem and norms differ from those of transformers' ResNet, which cannot load it",
    )
    lora = experiment.lora
    unpublished = experiment.model.fresh or name in NAMES or is_run(experiment.model.name)
    whole = lora is None or lora.changes_base or unpublished or merged
    check(
        whole or not is_local(name) or not shared,
        f"--push: the adapter's base {name!r} is on this machine only; push the whole model with --merged",
    )
    with new_folder(to) as aside:
        _write(trained, aside, to, whole=whole)
    return "the whole model" if whole else "an adapter"


def _write(trained: Trained, folder: Path, to: Path, *, whole: bool) -> None:
    """Write all files into `folder`, which will be renamed to `to`."""
    experiment = trained.experiment
    _write_model(trained, folder, whole=whole)
    if isinstance(trained.built, ImageModel):
        processor = _processor_settings(trained.built, cast("ImageFacts", trained.facts))
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    else:
        _write_tokenizer(trained, folder)
    replace_model_paths(folder, make_portable("model.name", experiment.model.name, to))
    settings, relative = make_settings_portable(experiment.model_dump(mode="json"), to)
    facts = cast("ExportFacts", {"settings": settings, "relative": relative, **trained.origin})
    facts["records"] = trained.records[-1:]
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(write_card(trained, to, whole=whole), encoding="utf-8")


def _write_model(trained: Trained, folder: Path, *, whole: bool) -> None:
    model: Any = trained.model
    if not whole:
        model.save_pretrained(folder, save_embedding_layers=False)
        return
    if trained.experiment.lora is not None:
        model = merge(model, choose_weights(trained.experiment, trained.pretrained).dtype)
    if isinstance(trained.built, ImageModel):
        classes = trained.facts["classes"]
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: i for i, name in enumerate(classes)}
    model.save_pretrained(folder)


def _write_tokenizer(trained: Trained, folder: Path) -> None:
    assert trained.pretrained is not None
    try:
        trained.pretrained.tokenizer.save_pretrained(folder)
    except ValueError as error:  # such as a chat template whose name is a path
        raise InputError(f"{folder}: its tokenizer cannot be written: {error}") from None


def _processor_settings(built: ImageModel, facts: ImageFacts) -> dict[str, Any]:
    """Return the settings of a transformers image processor that prepares images as the run did."""
    data_channels, height, width = facts["shape"]
    channels = built.channels or data_channels
    fit = images.remaining_fit(built, facts) or ResizeCrop()
    output = fit.output_size((height, width))
    if built.processor.settings is not None:
        settings = dict(built.processor.settings)
    else:
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": output[0], "width": output[1]},
            "resample": fit.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _repeat(facts["mean"], channels),
            "image_std": _repeat(facts["std"], channels),
        }
    if channels == 3:
        settings["do_convert_rgb"] = True
    is_square = facts.get("fit") == CROPPED and output[0] == output[1]
    return settings | _crop_settings(output[0], settings) if is_square else settings


def _repeat(values: Sequence[float], channels: int) -> list[float]:
    return list(values) if len(values) == channels else list(values) * channels


def _crop_settings(side: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that resize the shorter side and crop the centre."""
    kind = settings["image_processor_type"]
    return {
        "image_processor_type": kind if kind.startswith(KEPT_PROCESSORS) else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": settings["resample"],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the hub repository `owner/name`, created if missing; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="fedadamw export"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--push {repository}: {why}; the folder {folder} was written") from None
