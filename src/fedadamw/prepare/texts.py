"""Text classification, regression and language modelling: from settings to tokens, model and task."""

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.answers import AnswerTask, Asking
from fedadamw.data.columns import find_label_column
from fedadamw.data.dialogues import Dialogues
from fedadamw.data.scoring import REGRESSION
from fedadamw.data.sources import choose_held_out_split, read_held_out, read_splits
from fedadamw.data.text_tasks import LanguageTask, TextTask
from fedadamw.data.texts import Labelled, Texts, find_text_column
from fedadamw.models.dtypes import join_types
from fedadamw.models.heads import count_outputs, sort_like_head
from fedadamw.models.loading import build_seeded
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.text import Form, TextModel, build_classifier, build_language_model, try_packing
from fedadamw.models.vision import NAMES
from fedadamw.prepare.architecture import resolve_model
from fedadamw.prepare.base import choose_weights
from fedadamw.prepare.described import POOLED, has_prompts, no_texts
from fedadamw.prepare.problem import LoadWeights, Problem, TextFacts, place_model
from fedadamw.randomness import Purpose, torch_seed
from fedadamw.settings import glue
from fedadamw.settings.data import AUTO, LANGUAGE, DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check

DIGITS = DataSettings().source


def check_named(experiment: Experiment) -> None:
    """Raise InputError if the settings name no texts, or a model of images; nothing is read."""
    if resolve_model(experiment.model).name in NAMES:
        raise _refuse_image_model(experiment)
    if experiment.data.classes is None:
        _source(experiment.data)


def _refuse_image_model(experiment: Experiment) -> InputError:
    name, task = experiment.model.name, experiment.data.task
    return InputError(f"model.name={name!r} classifies images; data.task={task!r} takes a text model")


def load(experiment: Experiment, pretrained: Pretrained | None) -> tuple[Texts, Texts]:
    """Load the training and held-out texts that the experiment names, as tokens.

    With data.validation the second is empty; both are if only nodes have data.
    """
    if experiment.data.classes is not None:
        if pretrained is None:
            raise _refuse_image_model(experiment)
        none = no_texts(experiment, pretrained)
        return none, none
    data, (source, config) = experiment.data, _source(experiment.data)
    splits = read_splits(source, config, data.test_source, data.every)
    reader = _reader(experiment, pretrained, source, splits["train"])
    train = reader.read(splits["train"])
    warn_if_cut(experiment, pretrained, train, "training")
    if data.validation:
        return train, train.select(train.labels[:0])
    usual = _usual_split(data)
    wanted = data.test_split or (usual if usual in splits and data.test_source is None else None)
    place = None if data.test_source is None else f"data.test_source={data.test_source!r}"
    held_out = splits[choose_held_out_split(place or f"data.source={source!r}", splits, wanted)]
    test = replace(reader, group=None).read(held_out, place)
    warn_if_cut(experiment, pretrained, test, "held-out")
    return train, test


def load_test(experiment: Experiment, pretrained: Pretrained | None, facts: TextFacts) -> Texts:
    """Load the held-out texts only, with the classes of the training texts."""
    data, (source, config) = experiment.data, _source(experiment.data)
    split = read_held_out(source, config, data.test_source, data.test_split, _usual_split(data))
    reader = _reader(experiment, pretrained, source, split, facts)
    texts = reader.read(split, None if data.test_source is None else f"data.test_source={data.test_source!r}")
    warn_if_cut(experiment, pretrained, texts, "held-out")
    return texts


def _source(data: DataSettings) -> tuple[str, str | None]:
    """Return the data's source and its configuration there; for GLUE's tasks these are known."""
    is_glue = data.task in glue.TASKS
    check(is_glue or data.source != DIGITS, f"data.task={data.task!r} needs data.source: a folder, a file or a hub id")
    source = glue.HUB_ID if data.source == DIGITS else data.source
    return source, data.task if is_glue and source == glue.HUB_ID and data.config is None else data.config


def _usual_split(data: DataSettings) -> str | None:
    """Return the held-out split of a GLUE task; None for other tasks."""
    return glue.TASKS[data.task].test_split if data.task in glue.TASKS else None


def _reader(
    experiment: Experiment, pretrained: Pretrained | None, source: str, split: "Dataset", facts: TextFacts | None = None
) -> Labelled | Dialogues:
    """Return a reader of the experiment's columns. facts: classes to use instead of those of the training `split`."""
    if pretrained is None:
        raise _refuse_image_model(experiment)
    group = experiment.partition.client_column if facts is None else None
    max_length = pretrained.max_length(experiment.data.max_length)
    if experiment.data.task == LANGUAGE:
        return _language_reader(experiment.data, pretrained, source, split, group, max_length, facts)
    return _label_reader(experiment, pretrained, source, split, group, max_length, facts)


def _language_reader(
    data: DataSettings,
    pretrained: Pretrained,
    source: str,
    split: "Dataset",
    group: str | None,
    max_length: int,
    facts: TextFacts | None,
) -> Dialogues:
    columns = (data.text_column, data.prompt_column, data.response_column, data.label_column)
    templates = None if data.prompt is None or data.response is None else (data.prompt, data.response)
    reader = Dialogues(source, *columns, group, pretrained.tokenizer, max_length, templates=templates)
    return reader.of(split) if facts is None else replace(reader, classes=tuple(facts["classes"]))


def _label_reader(
    experiment: Experiment,
    pretrained: Pretrained,
    source: str,
    split: "Dataset",
    group: str | None,
    max_length: int,
    facts: TextFacts | None,
) -> Labelled:
    data, task, fresh = experiment.data, glue.TASKS.get(experiment.data.task), experiment.model.fresh
    edges = facts["edges"] if facts else None
    reader = Labelled.of(
        source,
        split,
        text_columns(experiment, f"data.source={source!r}", split),
        label=data.label_column,
        group=group,
        tokenizer=pretrained.tokenizer,
        max_length=max_length,
        classes=tuple(facts["classes"]) if facts else None,
        edges=None if edges is None else tuple(edges),
        numbers=task is not None and task.metrics[0] in REGRESSION,
        outputs=None if fresh else partial(count_outputs, pretrained),
    )
    if facts or reader.edges is not None or fresh:
        return reader
    return replace(reader, classes=sort_like_head(pretrained, reader.classes))


def text_columns(experiment: Experiment, place: str, split: "Dataset") -> tuple[str, ...]:
    """Return the column of the text, or the two of a pair; for GLUE's tasks they are known. place: for errors."""
    data, pair = experiment.data, experiment.data.text_pair_column
    if data.task in glue.TASKS and not (data.text_column or pair):
        return glue.TASKS[data.task].columns
    label = data.label_column or find_label_column(split)
    others = (label, pair, experiment.partition.column)
    first = find_text_column(place, split, data.text_column, others)
    return (first, pair) if pair else (first,)


def warn_if_cut(experiment: Experiment, pretrained: Pretrained | None, texts: Texts, which: str) -> None:
    """Warn if texts were cut, or divided because data.max_length=auto is below what the model takes.

    which: `training`, `held-out`, ...
    """
    if pretrained is None:
        return
    most, takes = pretrained.max_length(experiment.data.max_length), pretrained.longest
    limited = experiment.data.max_length == AUTO and most < takes
    hint = f"; the model takes {takes:,}, set data.max_length" if limited else ""
    if texts.truncated:
        warnings.warn(
            f"{texts.truncated:,} of {len(texts):,} {which} texts are longer than {most} tokens and were cut{hint}",
            stacklevel=2,
        )
    elif limited and texts.rows is not None and (more := len(texts) - len(np.unique(texts.rows))):
        warnings.warn(f"{which} texts were divided after {most} tokens: {more:,} more samples{hint}", stacklevel=2)


def build(
    experiment: Experiment,
    pretrained: Pretrained | None,
    train: Texts,
    test: Texts,
    device: torch.device,
    load_weights: LoadWeights | None = None,
) -> Problem:
    """Build the model on `device`, and its task."""
    cut, skipped = [train.truncated, test.truncated], [train.skipped, test.skipped]
    if experiment.data.validation:  # both come from one split and have its counts
        cut[1] = skipped[1] = 0
    facts: TextFacts = {"classes": train.classes, "edges": train.edges, "cut": cut}
    if any(skipped):
        facts["skipped"] = skipped
    if experiment.data.task == LANGUAGE:
        facts["prompts"] = bool((train.marks == 0).any()) if len(train) else has_prompts(experiment)
    built = build_model(experiment, pretrained, facts, load_weights)
    task = build_task(experiment, built.form, train, test, device, pretrained)
    return Problem(place_model(experiment, built.model, device), task, facts)


def build_model(
    experiment: Experiment, pretrained: Pretrained | None, facts: TextFacts, load_weights: LoadWeights | None = None
) -> TextModel:
    """Build the model; its fresh weights depend on the seed alone. load_weights: fills it with other weights."""
    if pretrained is None:
        raise _refuse_image_model(experiment)
    weights, lora = choose_weights(experiment, pretrained), experiment.lora
    language = experiment.data.task == LANGUAGE
    max_length = pretrained.max_length(experiment.data.max_length)

    def build() -> TextModel:
        if language:
            built = build_language_model(pretrained, max_length, weights)
        else:
            numbers = facts["edges"] is not None
            built = build_classifier(pretrained, facts["classes"], max_length, weights, numbers=numbers)
        if experiment.data.packing:
            masks = try_packing(pretrained.name, built.model, max_length, weights)
            built = built._replace(form=built.form._replace(masks_rows=masks))
        if load_weights is not None:
            built = built._replace(fresh=load_weights(built.model, facts["classes"]))
        kind = "CAUSAL_LM" if language else "SEQ_CLS"
        adapted = built.model if lora is None else add_adapters(built.model, lora, kind, built.fresh)
        return built._replace(model=join_types(adapted, weights.dtype))

    return build_seeded(build, torch_seed(experiment.seed, Purpose.INITIAL_MODEL))


def build_task(
    experiment: Experiment,
    form: Form,
    train: Texts,
    test: Texts,
    device: torch.device,
    pretrained: Pretrained | None = None,
) -> Task:
    """Build the task of learning the texts' classes, numbers or next tokens; pretrained: whose answers are scored."""
    data = experiment.data
    if data.task == LANGUAGE:
        size = evaluation_size(experiment)
        language = LanguageTask(train, test, form, device=device, test_batch_size=size, packing=data.packing)
        answers = bool(data.metrics) and (len(test) > 0 or experiment.training.client_evaluation > 0)
        if pretrained is None or not answers:
            return language
        asking = Asking(data.metrics, data.answers, data.answer_tokens, data.choices)
        return AnswerTask(
            language, train, test, pretrained.tokenizer, asking, size=size, positions=pretrained.positions
        )
    task, numbers = glue.TASKS.get(experiment.data.task), train.targets is not None
    fits = task is None or (task.metrics[0] in REGRESSION) == numbers
    kinds = ("fractions", "classes") if numbers else ("classes", "fractions")
    check(fits, f"data.task={experiment.data.task!r}: the labels are {kinds[0]}; the task needs {kinds[1]}")
    metrics = task.metrics if task else None
    if numbers and experiment.data.classes is not None:
        metrics = POOLED
    size = evaluation_size(experiment)
    return TextTask(train, test, form, device=device, metrics=metrics, test_batch_size=size)


def evaluation_size(experiment: Experiment) -> int:
    """Return how many held-out texts go through the model at once.

    For a language model, whose logits are large, never more than are trained on at once.
    """
    training, language = experiment.training, experiment.data.task == LANGUAGE
    return training.evaluation_batch(min(20, training.batch_size) if language else 100)
