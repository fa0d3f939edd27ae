"""What a run learns: a model, its task, and the facts of the data that the model is built from again."""

from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

from torch import nn

from fedadamw.models.pretrained import Pretrained
from fedadamw.models.vision import NAMES
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task


class PixelSteps(TypedDict, total=False):
    """How images are prepared before they are normalised; empty: scaled to [0, 1]."""

    resize: Sequence[int] | int | None  # as of Fit
    crop: Sequence[int] | None
    resample: int
    scale: float
    bgr: bool


class ImageFacts(TypedDict):
    """What building and evaluating an image classifier needs to know of its training images."""

    classes: Sequence[str]
    shape: Sequence[int]  # channels, height, width
    fit: NotRequired[str]  # what gave the images their size: SIZE (also if missing), CROP or MODEL
    skipped: NotRequired[list[int]]  # training and held-out images that could not be used
    steps: NotRequired[PixelSteps]
    mean: NotRequired[Sequence[float]]  # of each channel; known once the model is built
    std: NotRequired[Sequence[float]]


class TextFacts(TypedDict):
    """What building and evaluating a model of texts needs to know of its training texts."""

    classes: Sequence[str]
    edges: Sequence[float] | None  # of the bins, if numbers are predicted
    cut: NotRequired[list[int]]  # training and held-out texts that were too long
    skipped: NotRequired[list[int]]  # and conversations that could not be used


Facts = ImageFacts | TextFacts  # JSON in a run's manifest, in an exported folder, and sent to nodes


class Problem(NamedTuple):
    """A model, what it learns, and the facts of its data."""

    model: nn.Module
    task: Task
    facts: Facts


def open_pretrained(experiment: Experiment) -> Pretrained | None:
    """Return the experiment's pretrained model, None if its model is one of this package's; nothing is read yet."""
    model = experiment.model
    return None if model.name in NAMES else Pretrained(model.name, model.tokenizer, model.pad_token)
