"""Data that only Flower's nodes have: the settings (data.classes) describe what the server has no sample of."""

import numpy as np

from fedadamw.data.images import ImageOptions, Images, choose_format
from fedadamw.data.samples import Array
from fedadamw.data.scoring import REGRESSION
from fedadamw.data.texts import Texts
from fedadamw.models.heads import sort_like_head
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.processor import input_channels
from fedadamw.models.vision import NAMES
from fedadamw.prepare.architecture import resolve_model
from fedadamw.settings import glue
from fedadamw.settings.data import LANGUAGE, PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

NUMBERS, TOKENS = ("lowest to highest",), ("text",)  # classes of data without classes: all in one bin
POOLED = ("pearson",)  # metrics of numbers over nodes: Spearman's needs the ranks of all predictions
NO_DATA = "the server has no data (data.classes)"


def check_described(experiment: Experiment) -> None:
    """Raise InputError if data.classes does not go with the other settings; nothing is read."""
    data, task = experiment.data, experiment.data.task
    if data.classes is None:
        return
    given = f"data.classes={list(data.classes)}"
    kind = experiment.partition.kind
    only = f"{given} is for nodes that have their own data (partition.kind=nodes)"
    check(kind == "nodes" and task != PYTHON, f"{only}; with partition.kind={kind!r} the training set has the classes")
    check(not data.validation, f"data.validation={data.validation:g}: {NO_DATA}, so there is none to hold out")
    check(not data.metrics, f"data.metrics={list(data.metrics)}: {NO_DATA}, so no prompts to answer; set []")
    scored = not experiment.keep_best or experiment.training.client_evaluation > 0
    check(scored, f"keep_best=true: {NO_DATA} to choose a round by; set training.client_evaluation")
    none = task == LANGUAGE or _predicts_numbers(experiment)
    check(not none or not data.classes, f"{given}: data.task={task!r} predicts no classes; give data.classes=[]")
    label = f"data.label_column={data.label_column!r}: data.task={task!r} needs no labels; set it to null"
    check(task != LANGUAGE or data.label_column is None, label)
    some = none or task == "text" or bool(data.classes)
    check(some, f"{given}: data.task={task!r} predicts classes; give their names")
    if not data.is_text and resolve_model(experiment.model).name in NAMES:
        form = data.image_size is not None and data.image_mode != "auto"
        name = f"model.name={experiment.model.name!r}"
        check(form, f"{NO_DATA} to take the images' form from: give data.image_size and data.image_mode for {name}")


def _predicts_numbers(experiment: Experiment) -> bool:
    """Whether numbers are predicted: in a GLUE task that is scored by correlation, or for texts without classes."""
    data = experiment.data
    if data.task in glue.TASKS:
        return glue.TASKS[data.task].metrics[0] in REGRESSION
    return data.task == "text" and data.classes == ()


def no_texts(experiment: Experiment, pretrained: Pretrained) -> Texts:
    """Return no texts, of the classes or numbers that the settings describe."""
    nothing = np.zeros(0, np.int64)
    tokens, marks, starts = np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(1, np.int64)
    if experiment.data.task == LANGUAGE:
        return Texts(tokens, marks, starts, nothing, TOKENS)
    if _predicts_numbers(experiment):
        return Texts(tokens, marks, starts, nothing, NUMBERS, np.zeros(0, np.float32), ())
    return Texts(tokens, marks, starts, nothing, _classes(experiment, pretrained))


def has_prompts(experiment: Experiment) -> bool:
    """Whether a language model learns responses to prompts or in conversations, rather than whole texts."""
    return experiment.data.text_column is None


def no_images(experiment: Experiment, pretrained: Pretrained | None, options: ImageOptions) -> Images:
    """Return no images, in the form that `options` describe or the model takes."""
    grey = options.grey if pretrained is None or options.grey is not None else input_channels(pretrained.config) == 1
    assert grey is not None  # check_described: other models need data.image_mode
    target = choose_format(options, grey=grey)
    if target is None:
        raise InputError(f"{NO_DATA} and the model's image processor no fixed size: give data.image_size")
    labels: Array = np.zeros(0, np.int64)
    classes = _classes(experiment, pretrained)
    return Images(np.zeros((0, *target.shape), np.uint8), labels, classes, size_from=target.size_from)


def _classes(experiment: Experiment, pretrained: Pretrained | None) -> tuple[str, ...]:
    """Return the classes that the settings name; raises InputError if a trained head has them in another order."""
    classes = experiment.data.classes
    assert classes is not None
    if pretrained is None or experiment.model.fresh:
        return classes
    order = sort_like_head(pretrained, classes)
    same = f"data.classes={list(classes)}: the head of model.name={experiment.model.name!r} has them in another order"
    check(order == classes, f"{same}; give data.classes={list(order)}")
    return classes
