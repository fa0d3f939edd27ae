"""Answers of a trained language model to prompts, beside those of the model that it was trained from."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from fedadamw.data.dialogues import PAIRS
from fedadamw.data.filled import fill_row, read_class_names
from fedadamw.engine.workspace import autocast
from fedadamw.models.generation import Decoding, respond
from fedadamw.models.quantized import place_on
from fedadamw.prepare.device import select_device
from fedadamw.prepare.start import build_model, open_start
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.templates import list_columns
from fedadamw.trained.asked import Asked, encode_group, find_limit
from fedadamw.trained.load import FACTS, Overrides, Trained, open_trained
from fedadamw.trained.new_samples import PROMPT, TEXT, NewSamples
from fedadamw.trained.predict import leave_out, read_samples, takes_prompts
from fedadamw.validation import check

AT_ONCE = 20  # prompts that go through the model together
GROUP = 200  # prompts that are sorted by length together
COMMAND_LINE = "--prompt"
Base = Callable[[], AbstractContextManager[nn.Module | None]]  # the model before its training; None: the same, changed
OnGroup = Callable[[int], None]


class Reply(NamedTuple):
    """What is answered to one prompt."""

    file: str | None  # None for a prompt of the command line
    row: int | None  # in the file, from 1
    prompt: str
    base: str | None  # None if the model before its training is not known, or not asked
    tuned: str
    right: str | None  # the answer in the file, if it has one


def open_language_model(path: Path, overrides: Overrides, *, best: bool) -> Trained:
    """Load the model of a run, an export, a folder or a .gguf file; raises InputError unless it continues texts."""
    if not (RunFolder(path).started or (path / FACTS).is_file()):
        overrides = [("data.task", LANGUAGE), *overrides]
    trained = open_trained(path, overrides, best=best)
    task = trained.experiment.data.task
    check(task == LANGUAGE, f"{path}: was trained for data.task={task}; only a {LANGUAGE} model answers prompts")
    return trained


def ask_prompts(trained: Trained, prompts: Sequence[str]) -> list[NewSamples]:
    """Return prompts of the command line as samples; each is taken as it is, without the run's template."""
    import datasets

    check(all(prompt.strip() for prompt in prompts), "--prompt: is blank")
    kind = PROMPT if takes_prompts(trained) else TEXT
    table = datasets.Dataset.from_dict({"prompt": list(prompts)})
    return [NewSamples(table, ("prompt",), [COMMAND_LINE], range(1, len(prompts) + 1), kind)]


def ask_file(trained: Trained, file: str) -> list[NewSamples]:
    """Return the prompts in a file or a folder of files, as `predict` reads them."""
    return read_samples(trained, [file])


def find_base(trained: Trained) -> Base | str:
    """Return how to get the model of a run or an export before its training; or in words why it is not known.

    An adapter is switched off; else the model is built and loaded again.
    """
    experiment, facts = trained.experiment, trained.facts
    if experiment.model.fresh:
        return "it began with fresh weights"
    if experiment.lora is not None and not experiment.lora.changes_base:
        return cast("Any", trained.model).disable_adapter  # type: ignore[no-any-return]
    if "settings" in trained.origin:
        return "this folder holds only the trained model"

    @cache
    def rebuild() -> nn.Module:
        plain = experiment.model_copy(update={"lora": None})
        return build_model(plain, trained.pretrained, facts, open_start(plain)).model

    return lambda: nullcontext(place_on(rebuild(), select_device(experiment)).eval())


def generate(
    trained: Trained,
    samples: Sequence[NewSamples],
    decoding: Decoding,
    base: Base | None = None,
    on_group: OnGroup = lambda _: None,
) -> Iterator[Reply]:
    """Answer each prompt; one that cannot be used is an error, or is left out with data.on_bad=skip.

    base: also ask the model that it gives.
    """
    experiment, device = trained.experiment, select_device(trained.experiment)
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    assert trained.pretrained is not None
    tokenizer, limit = trained.pretrained.tokenizer, find_limit(trained.pretrained, decoding.tokens, "--max-tokens")
    tuned, done = place_on(trained.model, device).eval(), 0

    def answer(model: nn.Module, asked: Sequence[Asked]) -> list[str]:
        with torch.no_grad(), autocast(experiment.training, device):
            return list(respond(model, tokenizer, [q.ids for q in asked], decoding, AT_ONCE))

    for part in samples:
        for group in part.iter_groups(GROUP):
            asked, bad = encode_group(tokenizer, group, limit, decoding.tokens)
            used, right = leave_out(trained, group, bad), _find_right(trained, group)
            replies = answer(tuned, asked)
            before: Sequence[str | None] = [None] * len(asked)
            if base is not None:
                with base() as untuned:
                    before = answer(tuned if untuned is None else untuned, asked)
            done += len(group)
            on_group(done)
            for i, question, first, last in zip(used, asked, before, replies, strict=True):
                file, row = (None, None) if group.files[0] == COMMAND_LINE else group.place(i)
                yield Reply(file, row, question.words, first, last, right(i))


def _find_right(trained: Trained, group: NewSamples) -> Callable[[int], str | None]:
    """Return how to find the right answer of a sample of the group, if its file has one."""
    data, split = trained.experiment.data, group.split
    template, column = data.response, data.response_column
    if template is not None and set(list_columns(template)) <= set(split.features):
        names = read_class_names(split, list_columns(template))
        return lambda i: fill_row(template, split[i], names)
    known = (response for prompt, response in PAIRS if prompt in group.columns and response in split.features)
    column = column if column in split.features else next(known, None)
    return lambda i: None if column is None or split[i][column] is None else str(split[i][column])
