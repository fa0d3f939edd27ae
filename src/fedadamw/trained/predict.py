"""Predict new samples with a trained model: classes, numbers, or a language model's responses."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from fedadamw.data.image_decoding import decode_images
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.text_tasks import TextTask
from fedadamw.data.texts import read_unlabelled
from fedadamw.engine.workspace import autocast
from fedadamw.models.generation import Decoding, respond
from fedadamw.models.quantized import place_on
from fedadamw.models.text import TextModel
from fedadamw.models.vision import ImageModel
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import select_device
from fedadamw.prepare.problem import ImageFacts, TextFacts
from fedadamw.settings.data import LANGUAGE
from fedadamw.trained.asked import encode_group, find_limit
from fedadamw.trained.load import Trained
from fedadamw.trained.new_samples import NewSamples, read_new_samples
from fedadamw.validation import check

TEXT_BATCHES = 10  # that are sorted by length together
OnGroup = Callable[[int], None]


class Prediction(NamedTuple):
    """What a model says about one sample; of the last three fields, those of other kinds of models are empty."""

    file: str
    row: int | None  # in the file, from 1; None for an image file
    texts: tuple[str, ...]  # the sample, if it is a text or a pair
    probabilities: Mapping[str, float] = {}  # of each class, the likeliest first
    number: float | None = None
    response: str | None = None

    @property
    def label(self) -> str:
        """The likeliest class."""
        return next(iter(self.probabilities))


def read_samples(trained: Trained, files: Sequence[str]) -> list[NewSamples]:
    """Return the samples in `files`, for this model; see `read_new_samples`."""
    return read_new_samples(trained.experiment, files, prompts=takes_prompts(trained))


def predicts_classes(trained: Trained) -> bool:
    """Whether the model predicts classes, rather than numbers or responses."""
    return trained.experiment.data.task != LANGUAGE and cast("TextFacts", trained.facts).get("edges") is None


def predict(
    trained: Trained, samples: Sequence[NewSamples], *, max_new_tokens: int = 64, on_group: OnGroup = lambda _: None
) -> Iterator[Prediction]:
    """Predict each sample; one that cannot be used is an error, or is left out with data.on_bad=skip.

    max_new_tokens: of a language model's response. on_group gets the number of samples done, now and then.
    """
    experiment, device = trained.experiment, select_device(trained.experiment)
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    model = place_on(trained.model, device).eval()
    if isinstance(trained.built, ImageModel):
        size, one_group = experiment.training.evaluation_batch(500), partial(_predict_images, trained, device)
    elif experiment.data.task == LANGUAGE:
        assert trained.pretrained is not None
        limit = find_limit(trained.pretrained, max_new_tokens, "--max-new-tokens")
        size, one_group = 20 * TEXT_BATCHES, partial(_respond_to, trained, max_new_tokens, limit)
    else:
        size = experiment.training.evaluation_batch(100) * TEXT_BATCHES
        one_group = partial(_predict_texts, trained, device)
    done, used = 0, 0
    for part in samples:
        for group in part.iter_groups(size):
            with torch.no_grad(), autocast(experiment.training, device):
                found = list(one_group(model, group))
            done, used = done + len(group), used + len(found)
            on_group(done)
            yield from found
    check(used > 0, f"none of the {done:,} samples can be used")


def _predict_images(trained: Trained, device: torch.device, model: Any, group: NewSamples) -> Iterator[Prediction]:
    built, facts = cast("ImageModel", trained.built), cast("ImageFacts", trained.facts)
    target = images.training_format(trained.experiment, trained.pretrained, facts)
    pixels = np.empty((len(group), *target.shape), np.uint8)
    bad = decode_images(group.split, group.columns[0], target, pixels).bad
    used = leave_out(trained, group, bad)
    if not used:
        return
    labels = np.zeros(len(used), np.int64)
    new = Images(pixels[: len(used)], labels, tuple(facts["classes"]), size_from=target.size_from)
    task = images.build_task(trained.experiment, built, new.select(np.arange(0)), new, device, facts)
    assert isinstance(task, ImageTask)
    for i, probabilities in zip(used, _probabilities(task.logits(model, 0, len(new)), new.classes), strict=True):
        yield Prediction(*group.place(i), (), probabilities)


def _predict_texts(trained: Trained, device: torch.device, model: Any, group: NewSamples) -> Iterator[Prediction]:
    experiment, facts, pretrained = trained.experiment, cast("TextFacts", trained.facts), trained.pretrained
    assert pretrained is not None
    rows = group.split.select_columns(list(group.columns))[:]
    cells = list(zip(*(rows[column] for column in group.columns), strict=True))
    used = leave_out(trained, group, {i: why for i, cell in enumerate(cells) if (why := _find_wrong_text(cell))})
    if not used:
        return
    edges, classes = None if facts["edges"] is None else tuple(facts["edges"]), tuple(facts["classes"])
    max_length = pretrained.max_length(experiment.data.max_length)
    new = read_unlabelled(group.split.select(used), group.columns, pretrained.tokenizer, max_length, classes, edges)
    texts.warn_if_cut(experiment, pretrained, new, "new")
    task = texts.build_task(experiment, cast("TextModel", trained.built).form, new, new, device)
    assert isinstance(task, TextTask)
    logits = task.logits(model, 0, len(new))
    if edges is not None:
        for i, number in zip(used, logits.squeeze(-1).tolist(), strict=True):
            yield Prediction(*group.place(i), cells[i], number=number)
        return
    for i, probabilities in zip(used, _probabilities(logits, classes), strict=True):
        yield Prediction(*group.place(i), cells[i], probabilities)


def _respond_to(trained: Trained, new: int, limit: int | None, model: Any, group: NewSamples) -> Iterator[Prediction]:
    assert trained.pretrained is not None
    tokenizer = trained.pretrained.tokenizer
    asked, bad = encode_group(tokenizer, group, limit, new)
    used = leave_out(trained, group, bad)
    answers = respond(model, tokenizer, [q.ids for q in asked], Decoding(new), 20)
    for i, question, response in zip(used, asked, answers, strict=True):
        yield Prediction(*group.place(i), (question.words,), response=response)


def skip_bad(trained: Trained) -> Trained:
    """Return the model with data.on_bad=skip, which is a setting of images only, for new samples of any kind."""
    data = trained.experiment.data.model_copy(update={"on_bad": "skip"})
    return trained._replace(experiment=trained.experiment.model_copy(update={"data": data}))


def leave_out(trained: Trained, group: NewSamples, bad: Mapping[int, str]) -> list[int]:
    """Return the samples of a group that are not bad; raises InputError for the first bad one unless it is skipped."""
    for i, why in bad.items():
        line = f"{group.describe(i)}: {why}"
        check(trained.experiment.data.on_bad == "skip", f"{line}; repair or remove it, or use --on-bad skip")
        warnings.warn(f"{line}; left out", stacklevel=2)
    return [i for i in range(len(group)) if i not in bad]


def _find_wrong_text(cell: Sequence[object]) -> str:
    """Return why a cell is not a text or a pair of texts, or ''."""
    wrong = next((value for value in cell if not isinstance(value, str)), "")
    return "" if wrong == "" else f"holds {wrong!r} where a text is expected"


def _probabilities(logits: Tensor, classes: Sequence[str]) -> Iterator[dict[str, float]]:
    """Return the probability of each class, the likeliest first, for each row of logits (n, classes)."""
    assert logits.shape[-1] == len(classes)
    values, places = logits.double().sort(stable=True, dim=-1, descending=True)
    for row, order in zip(values.softmax(-1).tolist(), places.tolist(), strict=True):
        yield {classes[c]: p for p, c in zip(row, order, strict=True)}


def takes_prompts(trained: Trained) -> bool:
    """Whether a language model learned responses to prompts; a run of an earlier version does not say."""
    if trained.experiment.data.task != LANGUAGE:
        return False
    assert trained.pretrained is not None
    data = trained.experiment.data
    known = cast("TextFacts", trained.facts).get("prompts")
    guess = data.text_column is None and (data.prompt_column is not None or trained.pretrained.tokenizer.chat_template)
    return bool(guess) if known is None else known
