"""Classes of images."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from fedadamw.data.classes import no_head
from fedadamw.data.image_decoding import CROPPED, MODEL_SIZE, OWN_SIZE, PixelFormat
from fedadamw.data.image_task import ImageTask, channel_statistics
from fedadamw.data.images import ImageOptions, Images, load_held_out, load_images
from fedadamw.models import vision
from fedadamw.models.heads import outputs_of
from fedadamw.models.loading import initial
from fedadamw.models.lora import adapted
from fedadamw.models.processor import BYTE, Processor
from fedadamw.models.resizing import BILINEAR, ResizeCrop
from fedadamw.prepare.learned import Learned
from fedadamw.randomness import Purpose, torch_seed
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check


def load(experiment: Experiment) -> tuple[Images, Images]:
    """The training and held-out images that the experiment names."""
    data = experiment.data
    return load_images(
        data.source,
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
        group_column=experiment.partition.client_column,
        test_source=data.test_source,
        test_split=data.test_split,
        want_test=not data.validation,
        wanted=_wanted(experiment),
    )


def _wanted(experiment: Experiment) -> ImageOptions:
    """What the settings say of the form of images."""
    data, model = experiment.data, experiment.model
    return ImageOptions(
        size=data.image_size,
        grey=None if data.image_mode == "auto" else data.image_mode == "grey",
        skip_bad=data.on_bad == "skip",
        fit=partial(vision.fit_of, model.name),
        outputs=no_head if model.fresh or model.name in vision.NAMES else partial(outputs_of, model.name),
    )


def held_out(experiment: Experiment, about: Mapping[str, Any]) -> Images:
    """The held-out images alone, with the classes and in the form that `build` told about."""
    data = experiment.data
    return load_held_out(
        data.source,
        tuple(about["classes"]),
        _form(experiment, about),
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
        test_source=data.test_source,
        test_split=data.test_split,
        wanted=_wanted(experiment),
    )


def _form(experiment: Experiment, about: Mapping[str, Any]) -> PixelFormat:
    """The form of the training set, for other images."""
    data, (channels, height, width) = experiment.data, about["shape"]
    check(
        data.image_size is None or (height, width) == (data.image_size, data.image_size),
        f"data.image_size={data.image_size}: the model was trained on pictures of {height} x {width}",
    )
    mode = "grey" if channels == 1 else "rgb"
    check(data.image_mode in ("auto", mode), f"data.image_mode={data.image_mode}: the model was trained on {mode}")
    fit = ResizeCrop((height, width))
    if data.image_size is not None or about.get("fit") == MODEL_SIZE:
        model = vision.fit_of(experiment.model.name)
        crop = ResizeCrop(height, (height, width), model.resample if model else BILINEAR)
        fit = model if model is not None and about.get("fit") == MODEL_SIZE else crop
    return PixelFormat(
        channels == 1, (height, width), fit, CROPPED if data.image_size is not None else about.get("fit", OWN_SIZE)
    )


def build(experiment: Experiment, train: Images, test: Images, device: torch.device) -> Learned:
    """The classifier on `device`, and its task."""
    about: dict[str, Any] = {"classes": train.classes, "shape": list(train.pixels.shape[1:]), "fit": train.size_from}
    about["skipped"] = [train.skipped, 0 if experiment.data.validation else test.skipped]
    built = model_of(experiment, about)
    about["steps"] = steps_of(built, about)
    _check_size(experiment.model.name, built, about)
    own = (built.processor.mean, built.processor.std)
    about["mean"], about["std"] = own if all(own) else channel_statistics(train.pixels)
    return Learned(built.model.to(device), task_of(experiment, built, train, test, device, about), about)


def task_of(
    experiment: Experiment,
    built: vision.Vision,
    train: Images,
    test: Images,
    device: torch.device,
    about: Mapping[str, Any],
) -> Task:
    """What is learned of the images."""
    return ImageTask(
        train,
        test,
        device=device,
        crop_padding=experiment.data.crop_padding,
        flip=experiment.data.flip,
        inputs=_processor(built, about).inputs,
        channels=built.channels,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        test_batch_size=experiment.training.evaluation_batch(500),
        resident=experiment.data.resident,
    )


def _processor(built: vision.Vision, about: Mapping[str, Any]) -> Processor:
    """What is still to be done to images of the data's form."""
    return built.processor._replace(fit=remaining_fit(built, about))


def remaining_fit(built: vision.Vision, about: Mapping[str, Any]) -> ResizeCrop | None:
    """How images of the data's form come to the size that the model takes."""
    fit, kind = built.processor.fit, about.get("fit")
    if fit is None or kind == MODEL_SIZE:
        return None
    return ResizeCrop(fit.fixed_size, resample=fit.resample) if kind == CROPPED and fit.fixed_size is not None else fit


def steps_of(built: vision.Vision, about: Mapping[str, Any]) -> dict[str, Any]:
    """What is done to images of the data's form before they are normalised, as in a manifest; {}: scaled to [0, 1]."""
    _, height, width = about["shape"]
    fit, processor = remaining_fit(built, about) or ResizeCrop(), built.processor
    sizes = {
        (height, width),
        fit.resized_size((height, width)),
        fit.output_size((height, width)),
        built.size or (height, width),
    }
    steps = asdict(fit) if len(sizes) > 1 else {}
    steps |= {} if processor.scale == BYTE else {"scale": processor.scale}
    steps |= {"bgr": True} if processor.bgr else {}
    return dict(json.loads(json.dumps(steps)))  # as it is read again


def pixels_of(built: vision.Vision, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run that went on with `built` would write of its pictures in place of `about`."""
    own = {"mean": built.processor.mean, "std": built.processor.std, "steps": steps_of(built, about)}
    return {**about, "fit": about.get("fit", OWN_SIZE)} | {
        name: value for name, value in own.items() if value is not None
    }


def check_named(experiment: Experiment) -> None:
    """Raise InputError where the settings name no image classifier; no folder is looked into."""
    vision.check_named(experiment.model.name, depth=experiment.model.depth, norm=experiment.model.norm)


def model_of(experiment: Experiment, about: Mapping[str, Any]) -> vision.Vision:
    """The model, with fresh weights that depend on the seed alone."""
    m, lora = experiment.model, experiment.lora
    channels, height, width = about["shape"]
    check(
        m.name not in vision.NAMES or height == width,
        f"model.name={m.name!r} takes square images; these are {height} x {width}: set data.image_size",
    )
    shape = vision.ImageShape(width, channels, len(about["classes"]))

    def build() -> vision.Vision:
        built = vision.build(m.name, shape, depth=m.depth, norm=m.norm, fresh=m.fresh)
        return built if lora is None else built._replace(model=adapted(built.model, lora, None, built.fresh))

    built = initial(build, torch_seed(experiment.seed, Purpose.INITIAL_MODEL))
    check(
        built.channels in (None, channels) or channels == 1,
        f"model.name={m.name!r} takes {built.channels} channels; the images have {channels}: set data.image_mode",
    )
    return built


def _check_size(name: str, built: vision.Vision, about: Mapping[str, Any]) -> None:
    """Raise InputError where images come to another size than the model's own, and it takes no other."""
    channels, height, width = about["shape"]
    fit = remaining_fit(built, about) or ResizeCrop()
    size = fit.output_size((height, width))
    if built.size in (None, size):
        return
    try:
        with torch.no_grad():
            built.model.eval()(torch.zeros(1, built.channels or channels, *size))
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(f"model.name={name!r}: images come to {size[0]} x {size[1]}: {why}") from None
    finally:
        built.model.train()
