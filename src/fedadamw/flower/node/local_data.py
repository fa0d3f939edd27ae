"""A node's samples, and the task and model for them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fedadamw.data.images import Images
from fedadamw.data.texts import Texts
from fedadamw.flower.protocol import NodeConfig
from fedadamw.prepare import images, texts
from fedadamw.prepare.samples import load_samples, make_partition
from fedadamw.settings.data import DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import check


def build_task(
    experiment: Experiment, about: Mapping[str, Any], config: NodeConfig, number: int, device: torch.device
) -> tuple[nn.Module, Task, np.ndarray]:
    """Return the model, its task, and the numbers of this node's samples. about: what the server knows of the data."""
    train, samples = load_node_samples(experiment, about, config, number)
    no_held_out: Any = train.select(np.arange(0))
    if isinstance(train, Texts):
        text = texts.model_of(experiment, about)
        return text.model.to(device), texts.task_of(experiment, text.form, train, no_held_out, device), samples
    image = images.model_of(experiment, about)
    return image.model.to(device), images.task_of(experiment, image, train, no_held_out, device, about), samples


def load_node_samples(
    experiment: Experiment, about: Mapping[str, Any], config: NodeConfig, number: int
) -> tuple[Texts | Images, np.ndarray]:
    """Return samples and which of them are this node's: all of its own folder, or its part of the common data set."""
    if experiment.partition.kind == "nodes":
        samples = _load_folder(experiment, about, config)
        return samples, np.arange(len(samples))
    train, _ = load_samples(experiment)
    assert isinstance(train, Texts | Images)
    clients = make_partition(experiment, train)
    check(number < len(clients), f"this node's partition-id is {number}; there are {len(clients)} clients")
    return train, clients[number]


def _load_folder(experiment: Experiment, about: Mapping[str, Any], config: NodeConfig) -> Texts | Images:
    """Load the node's own `data`, with the classes and the form that the server's sample has."""
    place, split = config.get("data"), config.get("split", "train")
    check(isinstance(place, str), "this node has no data: give --node-config 'data=\"FOLDER\"'")
    data = {**experiment.data.model_dump(), "source": place, "config": None, "test_source": None, "test_split": split}
    local = experiment.model_copy(update={"data": DataSettings(**data)})
    samples = texts.held_out(local, about) if local.data.is_text else images.held_out(local, about)
    check(len(samples) > 0, f"{place}: holds no samples")
    return samples
