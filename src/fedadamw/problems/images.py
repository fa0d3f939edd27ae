"""Classes of images."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from fedadamw.data.batches import ImageTask, moments
from fedadamw.data.images import Images, load_held_out, load_images
from fedadamw.data.labels import no_head
from fedadamw.engine.randomness import Purpose, torch_seed
from fedadamw.engine.task import Task
from fedadamw.experiment import Experiment
from fedadamw.models import vision
from fedadamw.models.loading import initial, outputs_of
from fedadamw.models.lora import adapted
from fedadamw.problems import Learned
from fedadamw.validation import check


def load(experiment: Experiment) -> tuple[Images, Images]:
    """The training and held-out images that the experiment names."""
    data, model = experiment.data, experiment.model
    return load_images(
        data.source,
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
        group_column=experiment.partition.natural,
        test_source=data.test_source,
        test_split=data.test_split,
        want_test=not data.validation,
        outputs=no_head if model.fresh or model.name in vision.NAMES else partial(outputs_of, model.name),
    )


def held_out(experiment: Experiment, about: Mapping[str, Any]) -> Images:
    """The held-out images alone, with the classes that `build` told about."""
    data = experiment.data
    return load_held_out(
        data.source,
        tuple(about["classes"]),
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
        test_source=data.test_source,
        test_split=data.test_split,
    )


def build(experiment: Experiment, train: Images, test: Images, device: torch.device) -> Learned:
    """The classifier on `device`, and its task."""
    channels, height, width = train.pixels.shape[1:]
    about: dict[str, Any] = {"classes": train.classes, "shape": [channels, height, width]}
    built = model_of(experiment, about)
    own = (built.mean, built.std)
    about["mean"], about["std"] = own if all(own) else (a or b for a, b in zip(own, moments(train.pixels), strict=True))
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
        image_size=built.image_size,
        channels=built.channels,
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        resident=experiment.data.resident,
    )


def model_of(experiment: Experiment, about: Mapping[str, Any]) -> vision.Vision:
    """The model, with fresh weights that depend on the seed alone."""
    m, lora = experiment.model, experiment.lora
    channels, height, width = about["shape"]
    check(
        m.name not in vision.NAMES or height == width,
        f"model.name={m.name!r} takes square images; these are {height} x {width}",
    )
    shape = vision.ImageShape(width, channels, len(about["classes"]))

    def build() -> vision.Vision:
        built = vision.build(m.name, shape, depth=m.depth, norm=m.norm, fresh=m.fresh)
        return built if lora is None else built._replace(model=adapted(built.model, lora, None, built.fresh))

    built = initial(build, torch_seed(experiment.seed, Purpose.INITIAL_MODEL))
    check(
        built.channels in (None, channels) or channels == 1,
        f"model.name={m.name!r} takes {built.channels} channels; the images have {channels}",
    )
    return built
