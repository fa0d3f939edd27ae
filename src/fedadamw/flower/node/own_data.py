"""Loads a node's own data: what it trains on, and what it holds out or has to be evaluated on."""

import sys
from typing import NamedTuple, cast

import numpy as np

from fedadamw.data.images import Images
from fedadamw.data.partition import Partition, hold_out
from fedadamw.data.sources import read_held_out
from fedadamw.data.texts import Texts
from fedadamw.flower.node.config import read_share, read_test
from fedadamw.flower.node.fit import OWN, check_fit
from fedadamw.flower.protocol import NodeConfig, OtherDataError
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare import images, texts
from fedadamw.prepare.problem import Facts, ImageFacts, TextFacts
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.data import DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

SAME_IN_EVERY_RUN = 0  # seed of the draw of a node's held-out samples: no run trains on another's


class NodeSamples(NamedTuple):
    """The samples that a node has loaded."""

    train: Texts | Images  # also those that it holds out
    test: Texts | Images | None  # of its `test`
    own: np.ndarray  # numbers in `train` of those that it trains on
    held_out: np.ndarray  # and of those that it holds out


def load_own(experiment: Experiment, pretrained: Pretrained | None, about: Facts, config: NodeConfig) -> NodeSamples:
    """Load the node's `data`, and its `test` if the run evaluates nodes; hold out a share if it has no `test`.

    Raises OtherDataError if they do not fit the run, or cannot be used.
    """
    share, test = read_share(config), read_test(config)
    train = _load(experiment, pretrained, about, config, "data", str(config.get("split", "train")))
    own, held_out = _hold_out(train, share)
    if experiment.privacy is not None and experiment.privacy.unit == "sample":
        own = _keep_one_of_each_row(train, own)
    if test is None or not experiment.training.client_evaluation:
        return NodeSamples(train, None, own, held_out)
    split = config.get("test-split")
    samples = _load(experiment, pretrained, about, config, "test", None if split is None else str(split))
    return NodeSamples(train, samples, own, held_out)


def _hold_out(train: Texts | Images, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the samples to train on, and of about `share` of them that are held out, in every run."""
    everything = Partition(np.arange(len(train)), np.array([len(train)]))
    if not share:
        return everything[0], np.arange(0)
    rows = train.rows if isinstance(train, Texts) else None
    own, held_out = hold_out(everything, share, numpy_generator(SAME_IN_EVERY_RUN, Purpose.HELD_OUT), rows)
    return own[0], held_out[0]


def _keep_one_of_each_row(train: Texts | Images, own: np.ndarray) -> np.ndarray:
    """Return the first sample of each row: else the server, which sets the length, would say how many a text is."""
    if not isinstance(train, Texts) or train.rows is None:
        return own
    _, first = np.unique(train.rows[own], return_index=True)
    if len(first) < len(own):
        told = (
            f"privacy.unit=sample: of texts in several pieces the first is trained on, {len(first):,} of {len(own):,}"
        )
        print(told, file=sys.stderr, flush=True)
    return own[np.sort(first)]


def _load(
    experiment: Experiment,
    pretrained: Pretrained | None,
    about: Facts,
    config: NodeConfig,
    key: str,
    split: str | None,
) -> Texts | Images:
    """Load the node's own `data` or `test`, in the form and with the classes that the server tells."""
    place, what = config.get(key), OWN if key == "data" else "its test data"
    try:
        check(isinstance(place, str), "this node has no data: give --node-config 'data=\"FOLDER\"'")
        return _read(experiment, pretrained, about, str(place), split)
    except InputError as error:
        raise OtherDataError(str(error).replace(f"data.source={place!r}", OWN).replace(OWN, what)) from None


def _read(
    experiment: Experiment, pretrained: Pretrained | None, about: Facts, place: str, split: str | None
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
