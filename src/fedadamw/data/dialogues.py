"""Text for language models as token numbers: plain text, prompts with their answers, conversations."""

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.labels import check_columns, classes_of, groups_of, labels_of
from fedadamw.data.sources import Array
from fedadamw.data.texts import Encoder, Rows, Texts, check_words, text_column, tokenised
from fedadamw.validation import InputError, check

Ids = list[int]
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
        return self if self.label is None else replace(self, classes=classes_of(train, self.label))

    def texts(self, split: "Dataset", place: str | None = None) -> Texts:
        """The text of a split, tokenised, and what is to be learned of it; place: where it is from, for errors."""
        encode = _encoder_for(
            place or self.place, split, self.text, self.prompt, self.response, self.tokenizer, self.max_length
        )
        tokens, marks, starts, cut, rows = tokenised(split, self.tokenizer, encode)
        labels = np.zeros(len(rows), dtype=np.int64)
        if self.label is not None:
            labels = labels_of(split, self.label, self.classes)[rows]
        groups = groups_of(split, self.group)
        found = None if groups is None else groups[rows]
        empty = len(split) - len(np.unique(rows))
        if empty:
            warnings.warn(f"{empty:,} of {len(split):,} texts are empty and are left out", stacklevel=2)
        whole = Texts(tokens, marks, starts, labels, self.classes, None, None, found, rows)
        return self._learnable(whole, cut, place or self.place)

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
        return texts.take(np.flatnonzero(learned))


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
        return _cut([_answered(tokenizer, a, b) for a, b in pairs], max_length)

    return encode


def _answered(tokenizer: Any, prompt: str, answer: str) -> tuple[Ids, Ids]:
    """Tokens and marks of one prompt and its answer."""
    if tokenizer.chat_template:
        talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return _conversation(tokenizer, talk)
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
        return _cut([_conversation(tokenizer, talk) for talk in rows["messages"]], max_length)

    return encode


def _conversation(tokenizer: Any, talk: Any) -> tuple[Ids, Ids]:
    """Tokens and marks of a conversation in the tokenizer's chat template.

    Marked is what the assistant says, and the token after it, which ends its turn; nothing where it says nothing.
    """
    _check_conversation(talk)
    text = _templated(tokenizer, talk)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    marks, at = [0] * len(found["input_ids"]), 0
    for i, message in enumerate(talk):
        said, answer = message["content"].lstrip(), message["role"] == "assistant"
        if answer:
            at = max(at, _length_before(tokenizer, talk, i, text))
        start = text.find(said.rstrip(), at)
        if start < 0:
            raise InputError(f"the chat template does not show what is said as it is: {said[:60]!r}")
        at = start + len(said if text.startswith(said, start) else said.rstrip())  # some keep the blanks at its end
        if answer and said:
            here = _tokens_of(found["offset_mapping"], start, at)
            marks[here] = [1] * len(marks[here])
    return found["input_ids"], marks


def _templated(tokenizer: Any, talk: Any) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(talk, tokenize=False))
    except (TemplateError, ValueError) as error:
        raise InputError(f"the chat template refuses a conversation ({error}): it begins {talk[0]}") from None


def _length_before(tokenizer: Any, talk: Any, i: int, text: str) -> int:
    """How much of a conversation's `text` comes before its message i: as much as with another one in its place."""
    other = "0" if talk[i]["content"].lstrip()[:1] != "0" else "1"
    try:
        changed = _templated(tokenizer, [*talk[:i], {**talk[i], "content": other}, *talk[i + 1 :]])
    except InputError:
        return 0
    pairs = zip(text, changed, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), 0)


def _tokens_of(offsets: list[tuple[int, int]], start: int, end: int) -> slice:
    """The tokens that have a part of the characters from `start` to `end`, and the next one."""
    first = next((token for token, (_, stop) in enumerate(offsets) if stop > start), len(offsets))
    last = next((token for token in range(first, len(offsets)) if offsets[token][0] >= end), len(offsets))
    return slice(first, last + 1)


def _check_conversation(talk: Any) -> None:
    fine = isinstance(talk, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in talk
    )
    if not fine or not talk:
        raise InputError(f"column 'messages' holds {str(talk)[:60]} where a list of role and content is wanted")


def _ended(ids: Ids, tokenizer: Any) -> Ids:
    """`ids` with the token that ends a text, where there is one and it is not there."""
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def _cut(found: list[tuple[Ids, Ids]], max_length: int) -> dict[str, list[Any]]:
    return {
        "tokens": [tokens[:max_length] for tokens, _ in found],
        "marks": [marks[:max_length] for _, marks in found],
        "cut": [len(tokens) > max_length for tokens, _ in found],
    }
