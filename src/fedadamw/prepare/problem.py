"""What a run learns: its model, its task, and the facts of the data that are needed to build the model again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import nn

from fedadamw.data.image_decoding import SizeSource
from fedadamw.engine.ranks import current_team
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import place_on
from fedadamw.models.vision import NAMES
from fedadamw.prepare.architecture import CONFIG, is_run, resolve_model
from fedadamw.prepare.malloc import return_freed_memory
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.task import Task
from fedadamw.validation import InputError


class PixelSteps(TypedDict, total=False):
    """How images are prepared before they are normalised; empty: scaled to [0, 1]."""

    resize: Sequence[int] | int | None  # as of Fit
    crop: Sequence[int] | None
    resample: int
    scale: float
    bgr: bool


class _ImageForm(TypedDict):
    classes: Sequence[str]
    shape: Sequence[int]  # channels, height, width


class ImageFacts(_ImageForm, total=False):
    """What building and evaluating an image classifier needs to know of its training images."""

    fit: SizeSource  # what gave the images their size: OWN_SIZE (also if missing), CROPPED or MODEL_SIZE
    skipped: list[int]  # training and held-out images that could not be used
    steps: PixelSteps
    mean: Sequence[float]  # of each channel; known once the model is built, as are std and steps
    std: Sequence[float]


class _TextClasses(TypedDict):
    classes: Sequence[str]
    edges: Sequence[float] | None  # of the bins, if numbers are predicted


class TextFacts(_TextClasses, total=False):
    """What building and evaluating a model of texts needs to know of its training texts."""

    cut: list[int]  # training and held-out texts that were too long
    skipped: list[int]  # and conversations that could not be used
    prompts: bool  # of a language model: whether it learned responses to prompts, rather than whole texts


LoadWeights = Callable[[nn.Module, Sequence[str]], Sequence[str]]  # (model, classes of the data) -> fresh modules


class PythonFacts(TypedDict):
    """What is known of data that are Python objects."""

    classes: Sequence[str]  # none if the targets are not classes
    frozen: str  # digest of the model's parameters and buffers that are not trained


Facts = ImageFacts | TextFacts | PythonFacts  # JSON in a run's manifest, in an exported folder, and sent to nodes


MADE_IN_PYTHON = (
    "data.task='python': model and data are objects of the script that called fedadamw.simulate; run that script "
    "again (resume=True goes on or gives the trained model)"
)


class Problem(NamedTuple):
    """A model, what it learns, and the facts of its data."""

    model: nn.Module
    task: Task
    facts: Facts


def open_pretrained(experiment: Experiment) -> Pretrained | None:
    """Return the experiment's pretrained model, None if its model is one of this package's; nothing is read yet."""
    model, own = resolve_model(experiment.model), experiment.model
    classes = _read_classes(own.name) if is_run(own.name) and not own.fresh else None
    return None if model.name in NAMES else Pretrained(model.name, model.tokenizer, model.pad_token, classes)


def _read_classes(run: str) -> Sequence[str] | None:
    """Return the classes of the head that a run trained, None if it has none: it predicts numbers or tokens."""
    try:
        experiment = load(str(Path(run).expanduser() / CONFIG))
        facts = json.loads((Path(run).expanduser() / "manifest.json").read_text())["data"]
        return None if experiment.data.task == LANGUAGE or facts.get("edges") is not None else list(facts["classes"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"model.name={run!r}: its manifest.json cannot be read ({error})") from None


def place_model(experiment: Experiment, model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on `device`, in shards if the experiment says so: layer by layer, from the CPU's memory."""
    if experiment.shards > 1:
        current_team(device, experiment.shards).shard(model)
    placed = place_on(model, device)
    return_freed_memory()
    return placed
