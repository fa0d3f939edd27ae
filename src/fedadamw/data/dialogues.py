"""Text for language models as token numbers: plain text, prompts with their answers, conversations."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.classes import check_columns, read_classes, read_groups, read_labels
from fedadamw.data.conversations import Ids, conversation
from fedadamw.data.sources import Array
from fedadamw.data.texts import Encoder, Rows, Texts, Tokenised, check_words, text_column, tokenised
from fedadamw.validation import InputError, check

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))


@dataclass(frozen=True)
class Dialogues:
    """Reads text for a language model from splits of one data set.

    A column `messages` holds conversations (lists of role and content), of which what the assistant says is learned;
    of a prompt and its response the response; of plain text all, in as many samples of max_length as it takes.
    """

    source: str
    text: str | None
    prompt: str | None
    response: str | None
    label: str | None  # a column of classes, for partitions by class alone
    group: str | None
    tokenizer: Any
    max_length: int
    classes: tuple[str, ...] = ("text",)

    @property
    def place(self) -> str:
        """Where the data is, as errors say it."""
        return f"data.source={self.source!r}"

    def of(self, train: "Dataset") -> "Dialogues":
        """The same with the classes of the training split."""
        check_columns(self.place, train, (self.label, self.group))
        return self if self.label is None else replace(self, classes=read_classes(train, self.label))

    def texts(self, split: "Dataset", place: str | None = None) -> Texts:
        """The text of a split, tokenised, and what is to be learned of it; place: where it is from, for errors."""
        encode = _encoder_for(
            place or self.place, split, self.text, self.prompt, self.response, self.tokenizer, self.max_length
        )
        found = tokenised(split, self.tokenizer, encode)
        labels = np.zeros(len(split), dtype=np.int64)
        if self.label is not None:
            labels = read_labels(split, self.label, self.classes)
        groups = read_groups(split, self.group)
        rows = found.rows
        empty = len(split) - len(np.unique(rows))
        if empty:
            warnings.warn(f"{empty:,} of {len(split):,} texts are empty and are left out", stacklevel=2)
        whole = Texts(
            found.tokens,
            found.marks,
            found.starts,
            labels[rows],
            self.classes,
            groups=None if groups is None else groups[rows],
            rows=rows,
        )
        usable = _usable(found, place or self.place)
        if len(usable) < len(rows):
            whole = replace(whole.select(usable), skipped=len(rows) - len(usable))
        return self._learnable(whole, found.cut[usable], place or self.place)

    def _learnable(self, texts: Texts, cut: Array, place: str) -> Texts:
        """Those texts of which something is learned: a token that is marked, and not the first."""
        marks = texts.marks.astype(bool)
        marks[texts.starts[:-1]] = False
        learned = np.add.reduceat(np.append(marks, 0), texts.starts[:-1]) > 0  # every text has a token
        check(
            bool(learned.any()),
            f"{place}: nothing is left to learn within {self.max_length} tokens",
        )
        texts = replace(texts, truncated=int(cut[learned].sum()))
        if learned.all():
            return texts
        left_out = (
            f"{int((~learned).sum()):,} of {len(texts):,} texts have nothing to learn within {self.max_length} tokens"
        )
        warnings.warn(f"{left_out} and are left out", stacklevel=2)
        return texts.select(np.flatnonzero(learned))


def _usable(found: Tokenised, place: str) -> Array:
    """Those that became tokens; how many did not is said, and why the first did not."""
    refused = [i for i, why in enumerate(found.refused) if why]
    if refused:
        first = f"the first in row {found.rows[refused[0]] + 1:,}: {found.refused[refused[0]]}"
        check(len(refused) < len(found.rows), f"{place}: none of {len(refused):,} conversations can be used; {first}")
        count = f"{len(refused):,} of {len(found.rows):,} conversations cannot be used and are left out"
        warnings.warn(f"{place}: {count}; {first}", stacklevel=2)
    return np.setdiff1d(np.arange(len(found.rows)), refused)


def _encoder_for(
    place: str,
    split: "Dataset",
    text: str | None,
    prompt: str | None,
    response: str | None,
    tokenizer: Any,
    max_length: int,
) -> Encoder:
    """How the rows of `split` become tokens, by the columns that it has."""
    has = split.features
    check_columns(place, split, (text, prompt, response))
    if (prompt is None) != (response is None):
        raise InputError("data.prompt_column and data.response_column go together: give both")
    if text is None and prompt is None and "messages" in has:
        return _of_messages(tokenizer, max_length)
    more = ""
    if text is None and prompt is None:
        prompt, response = next(((p, r) for p, r in PAIRS if p in has and r in has), (None, None))
        more = "input" if prompt == "instruction" and "input" in has else ""
    if prompt is not None and response is not None:
        check_words(split, (prompt, response))
        return _of_pairs(tokenizer, prompt, response, more, max_length)
    column = text_column(place, split, text)
    check_words(split, (column,))
    return _of_text(tokenizer, column, max_length)


def _of_text(tokenizer: Any, column: str, max_length: int) -> Encoder:
    def encode(rows: Rows) -> dict[str, list[Any]]:
        tokens: list[Ids] = []
        of: list[int] = []
        for i, ids in enumerate(tokenizer(rows[column], return_attention_mask=False)["input_ids"]):
            whole = _ended(ids, tokenizer)
            parts = [whole[at : at + max_length] for at in range(0, len(whole) - 1, max_length)]  # none of one token
            tokens += parts
            of += [i] * len(parts)
        return {"tokens": tokens, "marks": [[1] * len(t) for t in tokens], "cut": [False] * len(tokens), "of": of}

    return encode


def _of_pairs(tokenizer: Any, prompt: str, response: str, more: str, max_length: int) -> Encoder:
    """`more`: a column that is added to the prompt where it holds something, or ''."""

    def encode(rows: Rows) -> dict[str, list[Any]]:
        asked, answers = rows[prompt], rows[response]
        if more:
            asked = [f"{a}\n{b}" if b else a for a, b in zip(asked, rows[more], strict=True)]
        pairs = zip(asked, answers, strict=True)
        return _cut([partial(_answered, tokenizer, a, b) for a, b in pairs], max_length)

    return encode


def _answered(tokenizer: Any, prompt: str, answer: str) -> tuple[Ids, Ids]:
    """Tokens and marks of one prompt and its answer."""
    if tokenizer.chat_template:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return conversation(tokenizer, talk)
    before = tokenizer(prompt + "\n")["input_ids"]
    if before and before[-1] == tokenizer.eos_token_id:  # which some tokenizers put after each text
        before = before[:-1]
    after = _ended(tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer)
    return before + after, [0] * len(before) + [1] * len(after)


def _of_messages(tokenizer: Any, max_length: int) -> Encoder:
    if not tokenizer.chat_template:
        raise InputError(
            "the data has conversations (messages), the tokenizer no chat template: give data.prompt_column and "
            "data.response_column, or data.text_column"
        )

    def encode(rows: Rows) -> dict[str, list[Any]]:
        return _cut([partial(conversation, tokenizer, talk) for talk in rows["messages"]], max_length)

    return encode


def _ended(ids: Ids, tokenizer: Any) -> Ids:
    """`ids` with the token that ends a text, where there is one and it is not there."""
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _cut(make: list[Callable[[], tuple[Ids, Ids]]], max_length: int) -> dict[str, list[Any]]:
    """What each of `make` gives, in at most `max_length` tokens, or why it gives nothing."""
    found: dict[str, list[Any]] = {"tokens": [], "marks": [], "cut": [], "refused": []}
    for one in make:
        try:
            (tokens, marks), why = one(), ""
        except InputError as error:
            tokens, marks, why = [], [], str(error)
        found["tokens"].append(tokens[:max_length])
        found["marks"].append(marks[:max_length])
        found["cut"].append(len(tokens) > max_length)
        found["refused"].append(why)
    return found
