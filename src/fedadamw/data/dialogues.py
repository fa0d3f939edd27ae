"""Text for language models as tokens: plain text, prompts with responses, conversations."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.classes import read_classes, read_labels
from fedadamw.data.columns import check_columns, read_groups
from fedadamw.data.conversations import Ids, encode_conversation, encode_question
from fedadamw.data.filled import Names, check_template, fill_row, read_class_names
from fedadamw.data.samples import Array
from fedadamw.data.texts import Encoder, Rows, Texts, Tokenised, check_words, find_text_column, tokenise
from fedadamw.validation import InputError, check

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))


@dataclass(frozen=True)
class Dialogues:
    """Reads text for a language model from splits of one data set.

    Learned are the assistant's messages of a conversation (column `messages`: lists of role and content), the response
    to a prompt, and all of a plain text, in as many samples of max_length as it needs. templates: make prompts and
    responses of a row's columns.
    """

    source: str
    text: str | None
    prompt: str | None
    response: str | None
    label: str | None  # a column of classes, used only by partitions
    group: str | None
    tokenizer: Any
    max_length: int
    classes: tuple[str, ...] = ("text",)
    templates: tuple[str, str] | None = None

    @property
    def place(self) -> str:
        """The data's source, for errors."""
        return f"data.source={self.source!r}"

    def of(self, train: "Dataset") -> "Dialogues":
        """Return a reader with the classes of the training split."""
        check_columns(self.place, train, (self.label, self.group))
        return self if self.label is None else replace(self, classes=read_classes(train, self.label))

    def read(self, split: "Dataset", place: str | None = None) -> Texts:
        """Tokenise the text of a split and mark what is learned; place: where it is from, for errors."""
        encode = self._encoder_of(split, place or self.place)
        tokenised = tokenise(split, self.tokenizer, encode)
        labels = np.zeros(len(split), dtype=np.int64)
        if self.label is not None:
            labels = read_labels(split, self.label, self.classes)
        groups = read_groups(split, self.group)
        rows = tokenised.rows
        empty = len(split) - len(np.unique(rows))
        if empty:
            warnings.warn(f"{empty:,} of {len(split):,} texts are empty and are left out", stacklevel=2)
        whole = Texts(
            tokenised.tokens,
            tokenised.marks,
            tokenised.starts,
            labels[rows],
            self.classes,
            groups=None if groups is None else groups[rows],
            rows=rows,
        )
        usable = _select_usable(tokenised, place or self.place)
        if len(usable) < len(rows):
            whole = replace(whole.select(usable), skipped=len(rows) - len(usable))
        return self._select_learnable(whole, tokenised.cut[usable], place or self.place)

    def _encoder_of(self, split: "Dataset", place: str) -> Encoder:
        if self.templates is not None:
            columns = [name for template in self.templates for name in check_template(place, split, template)]
            names = read_class_names(split, columns)
            return _of_templates(self.tokenizer, *self.templates, names, self.max_length)
        return _choose_encoder(place, split, self.text, self.prompt, self.response, self.tokenizer, self.max_length)

    def _select_learnable(self, texts: Texts, cut: Array, place: str) -> Texts:
        """Return the texts with a marked token after their first; the others are left out with a warning."""
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


def _select_usable(texts: Tokenised, place: str) -> Array:
    """Return the indices of the texts that could be tokenised; a warning counts the others and explains the first."""
    refused = [i for i, why in enumerate(texts.refused) if why]
    if refused:
        first = f"the first in row {texts.rows[refused[0]] + 1:,}: {texts.refused[refused[0]]}"
        check(len(refused) < len(texts.rows), f"{place}: none of {len(refused):,} conversations can be used; {first}")
        count = f"{len(refused):,} of {len(texts.rows):,} conversations cannot be used and are left out"
        warnings.warn(f"{place}: {count}; {first}", stacklevel=2)
    return np.setdiff1d(np.arange(len(texts.rows)), refused)


def _choose_encoder(
    place: str,
    split: "Dataset",
    text: str | None,
    prompt: str | None,
    response: str | None,
    tokenizer: Any,
    max_length: int,
) -> Encoder:
    """Return the function that tokenises rows of `split`, by the columns that it has."""
    has = split.features
    check_columns(place, split, (text, prompt, response))
    if (prompt is None) != (response is None):
        raise InputError("data.prompt_column and data.response_column go together: give both")
    if text is None and prompt is None and "messages" in has:
        return _of_messages(tokenizer, max_length)
    extra = ""
    if text is None and prompt is None:
        prompt, response = next(((p, r) for p, r in PAIRS if p in has and r in has), (None, None))
        extra = "input" if prompt == "instruction" and "input" in has else ""
    if prompt is not None and response is not None:
        check_words(split, (prompt, response))
        return _of_pairs(tokenizer, prompt, response, extra, max_length)
    column = find_text_column(place, split, text)
    check_words(split, (column,))
    return _of_text(tokenizer, column, max_length)


def _of_text(tokenizer: Any, column: str, max_length: int) -> Encoder:
    """Return an encoder of plain texts, in parts of `max_length` tokens."""

    def encode(rows: Rows) -> dict[str, list[Any]]:
        tokens: list[Ids] = []
        of: list[int] = []
        for i, ids in enumerate(tokenizer(rows[column], return_attention_mask=False)["input_ids"]):
            whole = _add_end(ids, tokenizer)
            parts = [whole[at : at + max_length] for at in range(0, len(whole) - 1, max_length)]  # none of one token
            tokens += parts
            of += [i] * len(parts)
        return {"tokens": tokens, "marks": [[1] * len(t) for t in tokens], "cut": [False] * len(tokens), "of": of}

    return encode


def _of_pairs(tokenizer: Any, prompt: str, response: str, extra: str, max_length: int) -> Encoder:
    """Return an encoder of prompts and responses; `extra`: a column that is appended to the prompt, or ''."""

    def encode(rows: Rows) -> dict[str, list[Any]]:
        asked, answers = rows[prompt], rows[response]
        if extra:
            asked = [f"{a}\n{b}" if b else a for a, b in zip(asked, rows[extra], strict=True)]
        pairs = zip(asked, answers, strict=True)
        return _encode_all([partial(_encode_pair, tokenizer, a, b) for a, b in pairs], max_length)

    return encode


def _of_templates(tokenizer: Any, prompt: str, response: str, names: Names, max_length: int) -> Encoder:
    """Return an encoder of prompts and responses that templates make of a row; `names`: of classes, by column."""

    def encode(rows: Rows) -> dict[str, list[Any]]:
        each = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
        return _encode_all([partial(_encode_row, tokenizer, prompt, response, names, row) for row in each], max_length)

    return encode


def _encode_row(tokenizer: Any, prompt: str, response: str, names: Names, row: dict[str, Any]) -> tuple[Ids, Ids]:
    return _encode_pair(tokenizer, fill_row(prompt, row, names), fill_row(response, row, names))


def _encode_pair(tokenizer: Any, prompt: str, answer: str) -> tuple[Ids, Ids]:
    """Return tokens and marks of one prompt and its response."""
    if tokenizer.chat_template:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return encode_conversation(tokenizer, talk)
    before = encode_opening(tokenizer, prompt + "\n")
    after = _add_end(tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer)
    return before + after, [0] * len(before) + [1] * len(after)


def encode_prompt(tokenizer: Any, prompt: str) -> Ids:
    """Return the tokens after which a model that learned responses to prompts continues with its response."""
    if tokenizer.chat_template:
        return encode_question(tokenizer, [{"role": "user", "content": prompt}])
    return encode_opening(tokenizer, prompt + "\n")


def encode_opening(tokenizer: Any, text: str) -> Ids:
    """Return the tokens of a text that continues, without a token that ends it."""
    ids: Ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids  # some tokenizers add it to each text


def _of_messages(tokenizer: Any, max_length: int) -> Encoder:
    if not tokenizer.chat_template:
        raise InputError(
            "the data has conversations (messages), but the tokenizer has no chat template: give data.prompt_column "
            "and data.response_column, or data.text_column"
        )

    def encode(rows: Rows) -> dict[str, list[Any]]:
        return _encode_all([partial(encode_conversation, tokenizer, talk) for talk in rows["messages"]], max_length)

    return encode


def _add_end(ids: Ids, tokenizer: Any) -> Ids:
    """Append the end-of-text token, if the tokenizer has one and `ids` does not end with it."""
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _encode_all(encoders: list[Callable[[], tuple[Ids, Ids]]], max_length: int) -> dict[str, list[Any]]:
    """Return the result of each of `encoders`, cut to `max_length` tokens, or the reason why it failed."""
    columns: dict[str, list[Any]] = {"tokens": [], "marks": [], "cut": [], "refused": []}
    for encode in encoders:
        try:
            (tokens, marks), why = encode(), ""
        except InputError as error:
            tokens, marks, why = [], [], str(error)
        columns["tokens"].append(tokens[:max_length])
        columns["marks"].append(marks[:max_length])
        columns["cut"].append(len(tokens) > max_length)
        columns["refused"].append(why)
    return columns
