"""Loads a node's samples and builds the task and model for them."""

from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array
from torch import nn

from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.pixel_sums import sum_pixels
from fedadamw.data.sources import read_held_out
from fedadamw.data.texts import Texts
from fedadamw.flower.node.fit import OWN, check_fit
from fedadamw.flower.protocol import PIXELS, NodeConfig, OtherDataError
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import place_on
from fedadamw.prepare import images, texts
from fedadamw.prepare.problem import Facts, ImageFacts, TextFacts, open_pretrained
from fedadamw.prepare.samples import load_samples, make_partition
from fedadamw.settings.data import DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check


def build_task(
    experiment: Experiment, about: Facts, config: NodeConfig, number: int, device: torch.device
) -> tuple[nn.Module, Task, np.ndarray]:
    """Return the model, its task, and the indices of this node's samples. about: the server's facts about the data."""
    pretrained = open_pretrained(experiment)
    train, samples = load_node_samples(experiment, pretrained, about, config, number)
    no_held_out: Any = train.select(np.arange(0))
    if isinstance(train, Texts):
        text = texts.build_model(experiment, pretrained, cast("TextFacts", about))
        return (
            place_on(text.model, device),
            texts.build_task(experiment, text.form, train, no_held_out, device),
            samples,
        )
    facts = cast("ImageFacts", about)
    image = images.build_model(experiment, pretrained, facts)
    return (
        place_on(image.model, device),
        images.build_task(experiment, image, train, no_held_out, device, facts),
        samples,
    )


def sum_own_pixels(task: Task, about: Facts, samples: np.ndarray) -> dict[str, Array]:
    """Return the sums of the pixels of a node's samples, if the server needs them; else no array."""
    if not isinstance(task, ImageTask) or "mean" in about:
        return {}
    pixels = task.pixels.cpu().numpy() if isinstance(task.pixels, torch.Tensor) else task.pixels
    return {PIXELS: Array(sum_pixels(pixels[samples]))}


def load_node_samples(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig, number: int
) -> tuple[Texts | Images, np.ndarray]:
    """Return samples and the indices of this node's: all of its own data, or its part of the common data set."""
    if experiment.partition.kind == "nodes":
        samples = _load_folder(experiment, pretrained, about, config)
        return samples, np.arange(len(samples))
    train, _ = load_samples(experiment, pretrained)
    assert isinstance(train, Texts | Images)
    clients = make_partition(experiment, train)
    check(number < len(clients), f"this node's partition-id is {number}; there are {len(clients)} clients")
    return train, clients[number]


def _load_folder(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig
) -> Texts | Images:
    """Load the node's own `data`, in the form and with the classes that the server tells.

    Raises OtherDataError if they do not fit, or cannot be used.
    """
    place, split = config.get("data"), config.get("split", "train")
    try:
        check(isinstance(place, str), "this node has no data: give --node-config 'data=\"FOLDER\"'")
        return _load_own(experiment, pretrained, about, str(place), str(split))
    except InputError as error:
        raise OtherDataError(str(error).replace(f"data.source={place!r}", OWN)) from None


def _load_own(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, place: str, split: str
) -> Texts | Images:
    data = {**experiment.data.model_dump(), "source": place, "config": None, "test_source": None, "test_split": split}
    local = experiment.model_copy(update={"data": DataSettings(**data)})
    check_fit(local, about, read_held_out(place, None, None, split))
    samples: Texts | Images
    if local.data.is_text:
        samples = texts.load_test(local, pretrained, cast("TextFacts", about))
    else:
        samples = images.load_test(local, pretrained, cast("ImageFacts", about))
    check(len(samples) > 0, f"{OWN}: holds no samples")
    return samples
