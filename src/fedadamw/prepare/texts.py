"""Classes of texts, numbers predicted of them, and their next tokens."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fedadamw.data.classes import find_label_column, no_head
from fedadamw.data.dialogues import Dialogues
from fedadamw.data.scoring import REGRESSION
from fedadamw.data.sources import choose_held_out_split, read_held_out, read_splits
from fedadamw.data.text_tasks import LanguageTask, TextTask
from fedadamw.data.texts import Labelled, Texts, text_column
from fedadamw.models import heads, text, tokenizers, vision
from fedadamw.models.heads import outputs_of
from fedadamw.models.loading import initial
from fedadamw.models.lora import adapted
from fedadamw.prepare.learned import Learned
from fedadamw.randomness import Purpose, torch_seed
from fedadamw.settings import glue
from fedadamw.settings.data import LANGUAGE, DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import check

DIGITS = DataSettings().source


def check_named(experiment: Experiment) -> None:
    """Raise InputError where the settings name no texts, or a model of images; nothing is looked into."""
    _check_model(experiment)
    _source(experiment.data)


def _check_model(experiment: Experiment) -> None:
    name, task = experiment.model.name, experiment.data.task
    check(name not in vision.NAMES, f"model.name={name!r} classifies images; data.task={task!r} takes a text model")


def tokenizer_of(experiment: Experiment) -> Any:
    """The model's tokenizer, or the one that the experiment names."""
    m = experiment.model
    _check_model(experiment)
    return tokenizers.tokenizer_of(m.name, m.tokenizer, m.pad_token)


def load(experiment: Experiment) -> tuple[Texts, Texts]:
    """The training and held-out texts that the experiment names, as its tokenizer's tokens.

    With data.validation the second is empty.
    """
    data, (source, config) = experiment.data, _source(experiment.data)
    splits = read_splits(source, config, data.test_source)
    reader = _reader(experiment, source, splits["train"])
    train = reader.texts(splits["train"])
    _warn_of_cut(train, "training", reader.max_length)
    if data.validation:
        return train, train.select(train.labels[:0])
    usual = _usual_split(data)
    wanted = data.test_split or (usual if usual in splits and data.test_source is None else None)
    place = None if data.test_source is None else f"data.test_source={data.test_source!r}"
    held_out_reader = replace(reader, group=None)
    test = held_out_reader.texts(
        splits[choose_held_out_split(place or f"data.source={source!r}", splits, wanted)], place
    )
    _warn_of_cut(test, "held-out", reader.max_length)
    return train, test


def held_out(experiment: Experiment, about: Mapping[str, Any]) -> Texts:
    """The held-out texts alone, with the classes that `build` told about."""
    data, (source, config) = experiment.data, _source(experiment.data)
    split = read_held_out(source, config, data.test_source, data.test_split, _usual_split(data))
    edges = about["edges"]
    reader = _reader(experiment, source, split, classes=tuple(about["classes"]), edges=edges and tuple(edges))
    found = reader.texts(split, None if data.test_source is None else f"data.test_source={data.test_source!r}")
    _warn_of_cut(found, "held-out", reader.max_length)
    return found


def _source(data: DataSettings) -> tuple[str, str | None]:
    """Where the data is, and its configuration there: GLUE's own for its tasks."""
    known = data.task in glue.TASKS
    check(known or data.source != DIGITS, f"data.task={data.task!r} needs data.source: a folder, a file or a hub id")
    source = glue.HUB_ID if data.source == DIGITS else data.source
    return source, data.task if known and source == glue.HUB_ID and data.config is None else data.config


def _usual_split(data: DataSettings) -> str | None:
    """The held-out split of a task of GLUE."""
    return glue.TASKS[data.task].test_split if data.task in glue.TASKS else None


def _reader(experiment: Experiment, source: str, train: Any, **known: Any) -> Labelled | Dialogues:
    """What reads the experiment's columns; its classes are `known`, or the training split's."""
    data = experiment.data
    tokenizer = tokenizer_of(experiment)
    common: dict[str, Any] = {
        "label": data.label_column,
        "group": None if known else experiment.partition.client_column,
        "tokenizer": tokenizer,
        "max_length": tokenizers.max_length_of(experiment.model.name, tokenizer, data.max_length),
    }
    if data.task == LANGUAGE:
        reader = Dialogues(source, data.text_column, data.prompt_column, data.response_column, **common)
        return replace(reader, classes=known["classes"]) if known else reader.of(train)
    task, pair = glue.TASKS.get(data.task), data.text_pair_column
    if task and not (data.text_column or pair):
        columns: tuple[str, ...] = task.columns
    else:
        label = data.label_column or find_label_column(train)
        first = text_column(
            f"data.source={source!r}", train, data.text_column, (label, pair, experiment.partition.column)
        )
        columns = (first, pair) if pair else (first,)
    numbers = task is not None and task.metrics[0] in REGRESSION
    outputs = no_head if experiment.model.fresh else partial(outputs_of, experiment.model.name)
    labelled = Labelled.of(source, train, columns, **common, **known, numbers=numbers, outputs=outputs)
    if known or labelled.edges is not None or experiment.model.fresh:
        return labelled
    return replace(labelled, classes=heads.in_own_order(experiment.model.name, labelled.classes))


def _warn_of_cut(texts: Texts, which: str, max_length: int) -> None:
    if texts.truncated:
        warnings.warn(
            f"{texts.truncated:,} of {len(texts):,} {which} texts are longer than {max_length} tokens and were cut",
            stacklevel=2,
        )


def build(experiment: Experiment, train: Texts, test: Texts, device: torch.device) -> Learned:
    """The model on `device`, and its task."""
    cut, skipped = [train.truncated, test.truncated], [train.skipped, test.skipped]
    if experiment.data.validation:  # all of it is of one split
        cut[1] = skipped[1] = 0
    about: dict[str, Any] = {"classes": train.classes, "edges": train.edges, "cut": cut}
    if any(skipped):
        about["skipped"] = skipped
    built = model_of(experiment, about)
    return Learned(built.model.to(device), task_of(experiment, built.form, train, test, device), about)


def task_of(experiment: Experiment, form: text.Form, train: Texts, test: Texts, device: torch.device) -> Task:
    """What is learned of the texts."""
    training = experiment.training
    if experiment.data.task == LANGUAGE:
        most = min(20, training.batch_size)  # a token's logits are as many as the tokenizer has words
        return LanguageTask(train, test, form, device=device, test_batch_size=training.evaluation_batch(most))
    task, numbers = glue.TASKS.get(experiment.data.task), train.targets is not None
    fits = task is None or (task.metrics[0] in REGRESSION) == numbers
    kinds = ("fractions", "classes") if numbers else ("classes", "fractions")
    check(fits, f"data.task={experiment.data.task!r}: the labels are {kinds[0]}, where {kinds[1]} are wanted")
    metrics = task.metrics if task else None
    at_once = training.evaluation_batch(100)
    return TextTask(train, test, form, device=device, metrics=metrics, test_batch_size=at_once)


def model_of(experiment: Experiment, about: Mapping[str, Any]) -> text.Text:
    """The model, whose fresh weights depend on the seed alone."""
    m, lora, language = experiment.model, experiment.lora, experiment.data.task == LANGUAGE
    tokenizer = tokenizer_of(experiment)
    max_length = tokenizers.max_length_of(m.name, tokenizer, experiment.data.max_length)
    numbers = about["edges"] is not None

    def build() -> text.Text:
        if language:
            built = text.causal(m.name, tokenizer, max_length, fresh=m.fresh)
        else:
            built = text.classifier(m.name, about["classes"], tokenizer, max_length, numbers=numbers, fresh=m.fresh)
        kind = "CAUSAL_LM" if language else "SEQ_CLS"
        return built if lora is None else built._replace(model=adapted(built.model, lora, kind, built.fresh))

    return initial(build, torch_seed(experiment.seed, Purpose.INITIAL_MODEL))
