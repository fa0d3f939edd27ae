"""A trained model as a folder that transformers' and peft's `from_pretrained` load, with a model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedadamw.data.image_decoding import CROPPED
from fedadamw.io.disk import new_folder
from fedadamw.models.loading import is_local
from fedadamw.models.resizing import ResizeCrop
from fedadamw.models.vision import NAMES, RESNETS, Vision
from fedadamw.prepare import images, texts
from fedadamw.settings.paths import make_portable, make_settings_portable, replace_model_paths
from fedadamw.trained.card import card
from fedadamw.trained.load import FACTS, Trained
from fedadamw.validation import InputError, check

OF_THEIR_OWN = ("EfficientNet", "MobileViT")  # image processors that do more than CLIP's to the pixels


def export(trained: Trained, to: Path, *, merged: bool = False, shared: bool = False) -> str:
    """Write the model to the new folder `to`, whole or not at all; what was written, in words.

    A model with adapters becomes an adapter, or with `merged` a whole model; one whose base nobody else has, since it
    was fresh or the exact mean has changed it, is always whole. shared: others shall load it, so an adapter's base
    must be of the hub.
    """
    experiment = trained.experiment
    to = to.absolute()
    check(
        experiment.model.name not in RESNETS,
        f"{experiment.model.name}: its stem and norms are not those of transformers' ResNet, which could not load it",
    )
    lora, name = experiment.lora, experiment.model.name
    nobody_has = experiment.model.fresh or name in NAMES  # the base, whose weights were drawn
    whole = lora is None or lora.aggregate == "exact" or nobody_has or merged
    check(
        whole or not is_local(name) or not shared,
        f"--push: the adapter's base {name!r} is on this machine alone; push the whole model with --merged",
    )
    with new_folder(to) as aside:
        _write(trained, aside, to, whole=whole)
    return "the whole model" if whole else "an adapter"


def _write(trained: Trained, folder: Path, to: Path, *, whole: bool) -> None:
    """Everything, into `folder`, which will be `to`."""
    experiment, model = trained.experiment, trained.model
    if experiment.lora is not None and whole:
        model = model.merge_and_unload()  # type: ignore[operator]
    if whole:
        _named_for_classes(model, trained)
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    if isinstance(trained.built, Vision):
        (folder / "preprocessor_config.json").write_text(json.dumps(_pixels(trained), indent=1) + "\n")
    else:
        try:
            texts.tokenizer_of(experiment).save_pretrained(folder)
        except ValueError as error:  # such as a chat template whose name is a path
            raise InputError(f"{folder}: its tokenizer cannot be written: {error}") from None
    replace_model_paths(folder, make_portable("model.name", experiment.model.name, to))
    settings, relative = make_settings_portable(experiment.model_dump(mode="json"), to)
    facts = {"settings": settings, "relative": relative, **trained.facts, "records": trained.records[-1:]}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card(trained, to, whole=whole), encoding="utf-8")


def _named_for_classes(model: Any, trained: Trained) -> None:
    """The classes' names in the configuration of an image classifier with fresh weights."""
    classes = trained.about["classes"]
    if isinstance(trained.built, Vision):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: i for i, name in enumerate(classes)}


def _pixels(trained: Trained) -> dict[str, Any]:
    """How an image is made what the model takes, as transformers' image processors read it."""
    assert isinstance(trained.built, Vision)
    about, processor = trained.about, trained.built.processor
    data_channels, height, width = about["shape"]
    channels = trained.built.channels or data_channels
    fit = images.remaining_fit(trained.built, about) or ResizeCrop()
    output = fit.output_size((height, width))
    if processor.settings is not None:
        found = dict(processor.settings)
    else:
        found = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": output[0], "width": output[1]},
            "resample": fit.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _a_channel(about["mean"], channels),
            "image_std": _a_channel(about["std"], channels),
        }
    if channels == 3:
        found["do_convert_rgb"] = True
    cut = about.get("fit") == CROPPED and output[0] == output[1]
    return found | _square(output[0], found) if cut else found


def _a_channel(values: Sequence[float], channels: int) -> list[float]:
    return list(values) if len(values) == channels else list(values) * channels


def _square(side: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a processor that resizes the shorter side and cuts out the middle."""
    kind = settings["image_processor_type"]
    return {
        "image_processor_type": kind if kind.startswith(OF_THEIR_OWN) else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": settings["resample"],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the hub repository `owner/name`, made where there is none; its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="fedadamw export"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--push {repository}: {why}; the folder {folder} is written") from None
