"""Texts as token numbers: labelled texts and pairs of them, tokenised once and kept in the cache of `datasets`."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

from fedadamw.data.classes import HeadSize, has_fractions, read_classes, read_labels
from fedadamw.data.columns import check_columns, find_label_column, read_groups, require_column
from fedadamw.data.samples import Array
from fedadamw.models.loading import as_input_error
from fedadamw.validation import InputError, check

Rows = Mapping[str, list[Any]]  # columns of some rows
CACHE_VERSION = 3  # of what `tokenise` leaves in the cache


@dataclass(frozen=True, eq=False)
class Texts:
    """One split of tokenised texts, one after the other in one array."""

    tokens: Array  # (total,) int32
    marks: Array  # (total,) int8: token types for a classifier; for a language model 1 if the token is learned
    starts: Array  # (n + 1,) int64, where each text begins; last, the total
    labels: Array  # (n,) int64; if numbers are predicted, their bins
    classes: tuple[str, ...]
    targets: Array | None = None  # (n,) float32 numbers to predict, instead of classes
    edges: tuple[float, ...] | None = None  # between the bins of these numbers
    groups: Array | None = None  # (n,) natural clients, if a column of the data names them
    rows: Array | None = None  # (n,) row of the data, if several samples may come from one
    truncated: int = 0  # texts of the whole split that were longer than the model takes
    skipped: int = 0  # conversations of the whole split that could not be used

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Array:
        """Number of tokens of each text, (n,)."""
        return np.diff(self.starts)

    def select(self, samples: Array) -> "Texts":
        """Return the given samples only."""
        lengths = self.lengths[samples]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.starts[:-1][samples] - starts[:-1], lengths) + np.arange(starts[-1])
        targets, groups = (None if a is None else a[samples] for a in (self.targets, self.groups))
        return Texts(
            self.tokens[places],
            self.marks[places],
            starts,
            self.labels[samples],
            self.classes,
            targets,
            self.edges,
            groups,
            None if self.rows is None else self.rows[samples],
            self.truncated,
            self.skipped,
        )

    @cached_property
    def fingerprint(self) -> str:
        """A digest of every token and label."""
        digest = hashlib.sha256()
        targets = self.labels if self.targets is None else self.targets
        for array in (self.tokens, self.marks, self.starts, targets):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def find_text_column(place: str, split: "Dataset", named: str | None, others: Collection[str | None] = ()) -> str:
    """Return the text's column: `named`, `text`, `sentence`, or the only column of strings besides `others`."""
    check_columns(place, split, (named,))
    if named:
        return named
    kinds = ("string", "large_string")
    strings: list[str] = [
        n for n, f in split.features.items() if getattr(f, "dtype", None) in kinds and n not in others
    ]
    for name in ("text", "sentence"):
        if name in strings:
            return name
    if len(strings) == 1:
        return strings[0]
    problem = f"several columns of text ({', '.join(strings)})" if strings else "no column of text"
    raise InputError(f"{place}: {problem} among {', '.join(split.features)}; name one with data.text_column")


@dataclass(frozen=True)
class Labelled:
    """Reads labelled texts, or pairs of them, from splits of one data set."""

    source: str
    columns: tuple[str, ...]
    label: str
    group: str | None
    tokenizer: Any
    max_length: int
    classes: tuple[str, ...]
    edges: tuple[float, ...] | None  # between the bins, if numbers are predicted

    @staticmethod
    def of(
        source: str,
        train: "Dataset",
        columns: tuple[str, ...],
        *,
        label: str | None,
        group: str | None,
        tokenizer: Any,
        max_length: int,
        classes: tuple[str, ...] | None = None,
        edges: tuple[float, ...] | None = None,
        numbers: bool = False,
        outputs: HeadSize | None = None,
    ) -> "Labelled":
        """Return a reader for this training split: words and whole numbers are classes, fractions are predicted.

        classes, edges: those of an earlier training split, used instead of this one's. numbers: whole numbers are
        predicted, too. outputs: the number of classes of the model's trained head, see `read_classes`.
        """
        place = f"data.source={source!r}"
        label = require_column(place, train, "label", label or find_label_column(train))
        check_columns(place, train, (*columns, label, group))
        if classes is None and (numbers or has_fractions(train, label)):
            edges, classes = _choose_bins(train, label)
        classes = classes or read_classes(train, label, outputs)
        check(edges is not None or len(classes) > 1, f"{place}: column {label!r} has only one class, {classes[0]!r}")
        return Labelled(source, columns, label, group, tokenizer, max_length, classes, edges)

    def read(self, split: "Dataset", place: str | None = None) -> Texts:
        """Tokenise the texts of a split and read their labels; place: where it is from, for errors."""
        check_columns(place or f"data.source={self.source!r}", split, (*self.columns, self.label))
        check_words(split, self.columns)
        encode = _encoder(self.tokenizer, self.columns, self.max_length)
        tokens, marks, starts, cut, *_ = tokenise(split, self.tokenizer, encode)
        if self.edges is None:
            labels, targets = read_labels(split, self.label, self.classes), None
        else:
            targets = _read_numbers(split, self.label)
            labels = np.searchsorted(np.asarray(self.edges, dtype=np.float32), targets)
        groups = read_groups(split, self.group)
        return Texts(tokens, marks, starts, labels, self.classes, targets, self.edges, groups, None, int(cut.sum()))


def read_unlabelled(
    split: "Dataset",
    columns: tuple[str, ...],
    tokenizer: Any,
    max_length: int,
    classes: tuple[str, ...],
    edges: tuple[float, ...] | None,
) -> Texts:
    """Tokenise new texts, or pairs of them; their labels or targets are 0. classes, edges: of the training split."""
    check_words(split, columns)
    tokens, marks, starts, cut, *_ = tokenise(split, tokenizer, _encoder(tokenizer, columns, max_length))
    targets = None if edges is None else np.zeros(len(split), np.float32)
    labels = np.zeros(len(split), np.int64)
    return Texts(tokens, marks, starts, labels, classes, targets, edges, truncated=int(cut.sum()))


def _read_numbers(split: "Dataset", column: str) -> Array:
    """Return a column of numbers (n,) float32; raises InputError if one is missing or not a number."""
    try:
        values = np.asarray(split[column][:], dtype=np.float32)
    except ValueError as error:
        raise InputError(f"column {column!r} does not hold only numbers ({error})") from None
    wrong = np.flatnonzero(~np.isfinite(values))
    check(len(wrong) == 0, f"column {column!r} holds no number in row {int(wrong[:1].sum()) + 1:,} of {len(values):,}")
    return values


def _choose_bins(train: "Dataset", column: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Return the edges and names of up to five bins of equally many training samples: a partition's classes."""
    edges = tuple(float(e) for e in np.unique(np.quantile(_read_numbers(train, column), (0.2, 0.4, 0.6, 0.8))))
    ends = [f"{edge:.3g}" for edge in edges]
    return edges, tuple(f"{a} to {b}" for a, b in zip(["lowest", *ends], [*ends, "highest"], strict=True))


Encoder = Callable[[Rows], dict[str, list[Any]]]


def _encoder(tokenizer: Any, columns: tuple[str, ...], max_length: int) -> Encoder:
    """Return a function from rows of text to their tokens, and whether each was cut."""

    def encode(rows: Rows) -> dict[str, list[Any]]:
        texts = [rows[column] for column in columns]
        encoding = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        tokens = encoding["input_ids"]
        types = encoding.get("token_type_ids") or [[0] * len(t) for t in tokens]
        return {"tokens": tokens, "marks": types, "cut": [bool(e.overflowing) for e in encoding.encodings]}

    return encode


def check_words(split: "Dataset", columns: Collection[str]) -> None:
    """Raise InputError if one of `columns` holds anything but text."""
    for column in columns:
        for row, value in enumerate(split[column][:]):
            if not isinstance(value, str):
                raise InputError(
                    f"column {column!r} holds {value!r} where a text is expected, in row {row + 1:,} of {len(split):,}"
                )


class Tokenised(NamedTuple):
    """Tokenised texts one after the other, as in `Texts`."""

    tokens: Array
    marks: Array
    starts: Array
    cut: Array  # (n,) bool
    rows: Array  # (n,) of the split
    refused: list[str]  # why a text could not be tokenised, or ''


def tokenise(split: "Dataset", tokenizer: Any, encode: Encoder) -> Tokenised:
    """Tokenise a split with `encode`; the result is cached by `datasets`.

    Besides the tokenizer, `encode` may close over strings and numbers only: they are part of the cache's key.
    """
    import datasets

    options = [c.cell_contents for c in encode.__closure__ or () if c.cell_contents is not tokenizer]
    about = f"{CACHE_VERSION} {split._fingerprint} {encode.__qualname__} {options} {_digest(tokenizer)}"
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("int32")),
            "marks": datasets.List(datasets.Value("int8")),
            "cut": datasets.Value("bool"),
            "row": datasets.Value("int64"),
            "refused": datasets.Value("string"),
        }
    )

    def with_rows(rows: Rows, numbers: list[int]) -> dict[str, list[Any]]:
        with as_input_error("the tokenizer cannot read a text"):
            columns = encode(rows)
        columns.setdefault("refused", [""] * len(columns["tokens"]))
        columns["row"] = [numbers[i] for i in columns.pop("of", range(len(numbers)))]
        return columns

    table = split.map(
        with_rows,
        batched=True,
        with_indices=True,
        remove_columns=split.column_names,
        features=features,
        new_fingerprint=hashlib.sha256(about.encode()).hexdigest()[:16],
    )
    tokens, starts = _read_lists(table, "tokens", np.int32)
    marks, _ = _read_lists(table, "marks", np.int8)
    rows = np.asarray(table["row"][:], dtype=np.int64)
    return Tokenised(tokens, marks, starts, np.asarray(table["cut"][:], dtype=bool), rows, list(table["refused"][:]))


def _read_lists(split: "Dataset", column: str, dtype: type[np.integer]) -> tuple[Array, Array]:
    """Return the concatenation of a column of lists, and where each list begins."""
    parts = split.data.column(column).chunks
    numbers = [np.asarray(part.flatten(), dtype=dtype) for part in parts]
    lengths = [np.diff(np.asarray(part.offsets, dtype=np.int64)) for part in parts]
    starts = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]))])
    return np.concatenate([*numbers, np.zeros(0, dtype)]), starts.astype(np.int64)


def _digest(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's rules, vocabulary and chat template, not of its last call's options."""
    import json

    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    names = ("chat_template", "eos_token", "model_input_names", "truncation_side", "special_tokens_map")
    text = json.dumps([rules, *(getattr(tokenizer, name, None) for name in names)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
