"""What a language model is asked: the tokens of a new sample that it continues, and how many of them it takes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fedadamw.data.conversations import Ids, encode_question
from fedadamw.data.dialogues import encode_opening, encode_prompt
from fedadamw.data.filled import fill_row, read_class_names
from fedadamw.models.pretrained import NO_LIMIT, Pretrained
from fedadamw.trained.new_samples import MESSAGES, PROMPT, NewSamples
from fedadamw.validation import InputError, check

Row = Mapping[str, Any]


class BadSampleError(InputError):
    """A sample cannot be used; the message says why."""


class Asked(NamedTuple):
    """A sample that the model continues."""

    ids: Ids
    words: str  # the prompt, or the last message that is not the assistant's


def encode_row(tokenizer: Any, samples: NewSamples, row: Row) -> Asked:
    """Return what the model continues for one row; raises BadSampleError if it holds nothing to continue."""
    value = row[samples.columns[0]]
    if samples.kind == MESSAGES:
        with _as_bad_sample():
            return Asked(encode_question(tokenizer, value), _last_words(value))
    if samples.template:
        with _as_bad_sample():
            value = fill_row(samples.template, row, read_class_names(samples.split, samples.columns))
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError(f"column {samples.columns[0]!r} holds {value!r} where a text is expected")
    whole = f"{value}\n{row[samples.extra]}" if samples.extra and row[samples.extra] else value
    ids = encode_prompt(tokenizer, whole) if samples.kind == PROMPT else encode_opening(tokenizer, whole)
    if not ids:
        raise BadSampleError("the tokenizer leaves nothing of it")
    return Asked(ids, value)


@contextmanager
def _as_bad_sample() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise BadSampleError(str(error)) from None


def _last_words(talk: Sequence[Mapping[str, Any]]) -> str:
    """The last message of a conversation that is not the assistant's."""
    return next(str(m.get("content") or "") for m in reversed(talk) if m["role"] != "assistant")


def encode_group(tokenizer: Any, group: NewSamples, limit: int | None, new: int) -> tuple[list[Asked], dict[int, str]]:
    """Return the samples of a group that can be used, in order, and why each of the others cannot, by number."""
    asked, bad = [], {}
    for i, row in enumerate(group.split):
        try:
            question = encode_row(tokenizer, group, row)
            check_length(question.ids, limit, new)
            asked.append(question)
        except BadSampleError as error:
            bad[i] = str(error)
    return asked, bad


def check_length(ids: Ids, limit: int | None, new: int) -> None:
    """Raise BadSampleError if a prompt and `new` tokens after it are more than the model's `limit`."""
    if limit is not None and len(ids) + new > limit:
        raise BadSampleError(f"has {len(ids):,} tokens, and with {new:,} new ones the model takes {limit:,}")


def find_limit(pretrained: Pretrained, new: int, option: str) -> int | None:
    """Return how many tokens the model takes, None if it does not say; raises InputError if `option`'s are too many."""
    limit = getattr(pretrained.config, "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit < NO_LIMIT else None
    check(limit is None or new < limit, f"{option}={new}: the model takes {limit} tokens, prompt included")
    return limit
