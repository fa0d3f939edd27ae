"""Loads a node's samples and builds the task and model for them."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.data.images import Images
from fedadamw.data.partition import Partition, hold_out
from fedadamw.data.texts import Texts
from fedadamw.flower.node.config import read_held_out, read_test
from fedadamw.flower.protocol import NodeConfig
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import place_on
from fedadamw.prepare import images, texts
from fedadamw.prepare.problem import Facts, ImageFacts, TextFacts, open_pretrained
from fedadamw.prepare.samples import load_samples, make_partitions
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.data import DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Model, Task
from fedadamw.validation import check

SAME_IN_EVERY_RUN = 0  # seed of the draw of a node's held-out samples: no run trains on another's


class NodeSamples(NamedTuple):
    """The samples that a node has loaded."""

    train: Texts | Images  # also those that it holds out
    test: Texts | Images | None  # of its `test`
    own: np.ndarray  # numbers in `train` of those that it trains on
    held_out: np.ndarray  # and of those that it holds out


class NodeTask(NamedTuple):
    """What a node learns, and its samples."""

    task: Task
    samples: np.ndarray  # numbers of the training samples that it trains on
    held_out: np.ndarray | None  # of those that it holds out; None if the task's held-out set is the node's `test`

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
    if test is None and isinstance(train, Texts):
        test = train.select(own_held_out)  # a language model's questions are made of the held-out set
    held_out: Any = train.select(np.arange(0)) if test is None else test
    if isinstance(train, Texts):
        text = texts.build_model(experiment, pretrained, cast("TextFacts", about))
        model = place_on(text.model, device)
        task: Task = texts.build_task(experiment, text.form, train, held_out, device)
    else:
        facts = cast("ImageFacts", about)
        image = images.build_model(experiment, pretrained, facts)
        model = place_on(image.model, device)
        task = images.build_task(experiment, image, train, held_out, device, facts)
    return model, NodeTask(task, samples, own_held_out if test is None else None)


def load_node_samples(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig, number: int
) -> NodeSamples:
    """Return samples and the numbers of this node's: its own data, or its part of the common data set."""
    if experiment.partition.kind == "nodes":
        return _load_own(experiment, pretrained, about, config)
    given = next((key for key in ("test", "held-out") if key in config), None)
    kind = experiment.partition.kind
    check(given is None, f"this node has {given} of its own, and partition.kind={kind!r} gives it its data")
    train, _ = load_samples(experiment, pretrained)
    assert isinstance(train, Texts | Images)
    clients, held_out = make_partitions(experiment, train)
    check(number < len(clients), f"this node's partition-id is {number}; there are {len(clients)} clients")
    return NodeSamples(train, None, clients[number], np.arange(0) if held_out is None else held_out[number])


def _load_own(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig
) -> NodeSamples:
    """Load the node's own `data`, and its `test` if the run evaluates nodes; hold out a share if it has no `test`."""
    train, test, share = _load_folder(experiment, pretrained, about, config), read_test(config), read_held_out(config)
    if test is not None:
        every = np.arange(len(train))
        wanted = experiment.training.client_evaluation > 0
        own_test = _load_folder(experiment, pretrained, about, config, "test") if wanted else None
        return NodeSamples(train, own_test, every, np.arange(0))
    everything = Partition(np.arange(len(train)), np.array([len(train)]))
    if not share:
        return NodeSamples(train, None, everything[0], np.arange(0))
    rows = train.rows if isinstance(train, Texts) else None
    own, held_out = hold_out(everything, share, numpy_generator(SAME_IN_EVERY_RUN, Purpose.HELD_OUT), rows)
    return NodeSamples(train, None, own[0], held_out[0])


def _load_folder(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig, key: str = "data"
) -> Texts | Images:
    """Load the node's own `data` or `test`, in the form and with the classes of the server's sample."""
    place = config.get(key)
    split = config.get("split", "train") if key == "data" else config.get("test-split")
    check(isinstance(place, str), "this node has no data: give --node-config 'data=\"FOLDER\"'")
    data = {**experiment.data.model_dump(), "source": place, "config": None, "test_source": None, "test_split": split}
    local = experiment.model_copy(update={"data": DataSettings(**data)})
    samples: Texts | Images
    if local.data.is_text:
        samples = texts.load_test(local, pretrained, cast("TextFacts", about))
    else:
        samples = images.load_test(local, pretrained, cast("ImageFacts", about))
    check(len(samples) > 0, f"{place}: holds no samples")
    return samples
