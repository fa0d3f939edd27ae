"""Loads a node's samples and builds the task and model for them."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor, nn

from fedadamw.data.answers import AnswerTask
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.pixel_sums import sum_pixels
from fedadamw.data.texts import Texts
from fedadamw.flower.node.own_data import NodeSamples, load_own
from fedadamw.flower.protocol import PIXELS, NodeConfig
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import place_on
from fedadamw.prepare import images, texts
from fedadamw.prepare.problem import Facts, ImageFacts, TextFacts, open_pretrained
from fedadamw.prepare.samples import load_samples, make_partitions
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Model, Task
from fedadamw.validation import check


class NodeTask(NamedTuple):
    """What a node learns, and its samples."""

    task: Task
    samples: np.ndarray  # numbers of the training samples that it trains on
    held_out: np.ndarray | None  # of those that it holds out; None if the task's held-out set has them

    @property
    def held_out_count(self) -> int:
        """The number of held-out samples."""
        return self.task.held_out if self.held_out is None else len(self.held_out)

    def outputs(self, model: Model) -> Tensor:
        """Return the outputs for Task.sums of the held-out samples, (held-out, c)."""
        if self.held_out is None:
            return self.task.outputs(model, 0, self.task.held_out)
        return self.task.outputs_of(model, torch.from_numpy(self.held_out))


def build_task(
    experiment: Experiment, about: Facts, config: NodeConfig, number: int, device: torch.device
) -> tuple[nn.Module, NodeTask]:
    """Return the model, and its task with this node's samples. about: the server's facts about the data."""
    pretrained = open_pretrained(experiment)
    train, test, samples, own_held_out = load_node_samples(experiment, pretrained, about, config, number)
    held_out: Any = train.select(np.arange(0)) if test is None else test
    if isinstance(train, Texts):
        text = texts.build_model(experiment, pretrained, cast("TextFacts", about))
        model = place_on(text.model, device)
        task: Task = texts.build_task(experiment, text.form, train, held_out, device, pretrained)
    else:
        facts = cast("ImageFacts", about)
        image = images.build_model(experiment, pretrained, facts)
        model = place_on(image.model, device)
        task = images.build_task(experiment, image, train, held_out, device, facts)
    if test is None and isinstance(task, AnswerTask):
        task.ask(own_held_out.tolist())
    return model, NodeTask(task, samples, own_held_out if test is None else None)


def sum_own_pixels(task: Task, about: Facts, samples: np.ndarray) -> dict[str, Array]:
    """Return the sums of the pixels of a node's samples, if the server needs them; else no array."""
    if not isinstance(task, ImageTask) or "mean" in about:
        return {}
    pixels = task.pixels.cpu().numpy() if isinstance(task.pixels, torch.Tensor) else task.pixels
    return {PIXELS: Array(sum_pixels(pixels[samples]))}


def load_node_samples(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig, number: int
) -> NodeSamples:
    """Return samples and the numbers of this node's: its own data, or its part of the common data set."""
    kind = experiment.partition.kind
    if kind == "nodes":
        return load_own(experiment, pretrained, about, config)
    given = next((key for key in ("test", "held-out") if key in config), None)
    check(given is None, f"this node has {given} of its own, and partition.kind={kind!r} gives it its data")
    train, _ = load_samples(experiment, pretrained)
    assert isinstance(train, Texts | Images)
    clients, held_out = make_partitions(experiment, train)
    check(number < len(clients), f"this node's partition-id is {number}; there are {len(clients)} clients")
    return NodeSamples(train, None, clients[number], np.arange(0) if held_out is None else held_out[number])
