"""Read new samples, without labels, from the files that a user names: images, tables, lines of text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedadamw.data.columns import check_columns
from fedadamw.data.dialogues import PAIRS
from fedadamw.data.filled import check_template
from fedadamw.data.sources import FORMATS, IMAGE_SUFFIXES, read_file
from fedadamw.data.texts import find_text_column
from fedadamw.prepare import texts
from fedadamw.settings import glue
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.templates import list_columns
from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from datasets import Dataset

LINES = ".txt"
IMAGE_COLUMNS = ("image", "img", "file_name", "file", "path")  # of paths to images
TEXT, PROMPT, MESSAGES = "text", "prompt", "messages"  # what a language model continues


@dataclass(frozen=True, eq=False)
class NewSamples:
    """Samples of one table or text file, or all image files together."""

    split: "Dataset"
    columns: tuple[str, ...]  # of the image, the text, or the two texts of a pair
    files: Sequence[str]  # the file of each sample, or one for all
    rows: Sequence[int] | None  # the row or line of each sample in its file, from 1; None for image files
    kind: str = TEXT  # for language models: TEXT, PROMPT or MESSAGES
    extra: str = ""  # for prompts: a column that is appended, or ''
    template: str = ""  # for prompts: makes one of the columns, or ''

    def __len__(self) -> int:
        return len(self.split)

    def place(self, i: int) -> tuple[str, int | None]:
        """The file of sample i, and its row there."""
        return self.files[i if len(self.files) > 1 else 0], None if self.rows is None else self.rows[i]

    def describe(self, i: int) -> str:
        """The place of sample i, in words."""
        file, row = self.place(i)
        return file if row is None else f"{file}, row {row:,}"

    def iter_groups(self, size: int) -> Iterator["NewSamples"]:
        """Iterate over groups of at most `size` samples."""
        for start in range(0, len(self), size):
            chosen = range(start, min(start + size, len(self)))
            files = [self.files[i] for i in chosen] if len(self.files) > 1 else self.files
            rows = None if self.rows is None else [self.rows[i] for i in chosen]
            yield replace(self, split=self.split.select(chosen), files=files, rows=rows)


def read_new_samples(experiment: Experiment, files: Sequence[str], *, prompts: bool) -> list[NewSamples]:
    """Return the samples in `files`, which may be folders; raises InputError if one cannot be used or has none.

    prompts: whether a language model takes lines of text for prompts, rather than for the beginning of a text.
    """
    check(bool(files), "give at least one FILE of new samples")
    is_text, read = experiment.data.is_text, []
    suffixes = (*FORMATS, LINES) if is_text else (*FORMATS, *IMAGE_SUFFIXES)
    paths = [path for file in files for path in _list_files(file, suffixes)]
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if images:
        read.append(NewSamples(_image_table(images), ("image",), [str(path) for path in images], None))
    for path in paths:
        if path.suffix.lower() in FORMATS:
            read.append(_read_table(experiment, path, prompts=prompts))
        elif path.suffix.lower() == LINES:
            read.append(_read_lines(experiment, path, prompts=prompts))
    return read


def _list_files(file: str, suffixes: Sequence[str]) -> list[Path]:
    """Return the file, or all files of a folder with one of `suffixes`."""
    path = Path(file).expanduser()
    check(path.exists(), f"{file}: no such file or folder")
    if path.is_file():
        check(path.suffix.lower() in suffixes, f"{file}: a file for this model must end in {', '.join(suffixes)}")
        check(path.stat().st_size > 0, f"{file}: the file is empty")
        return [path]
    found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in suffixes and p.is_file()]
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    check(bool(visible), f"{file}: the folder holds no file that ends in {', '.join(suffixes)}")
    return visible


def _image_table(paths: Sequence[Path]) -> "Dataset":
    import datasets

    cells = [{"path": str(path), "bytes": None} for path in paths]
    return datasets.Dataset.from_dict({"image": cells}, features=datasets.Features(image=datasets.Image()))


def _read_table(experiment: Experiment, path: Path, *, prompts: bool) -> NewSamples:
    split = read_file(str(path))
    rows = range(1, len(split) + 1)
    if not experiment.data.is_text:
        table, column = _with_images(experiment, path, split)
        return NewSamples(table, (column,), [str(path)], rows)
    if experiment.data.task == LANGUAGE:
        if experiment.data.prompt is not None:
            named = tuple(check_template(str(path), split, experiment.data.prompt))
            return NewSamples(split, named, [str(path)], rows, PROMPT, template=experiment.data.prompt)
        columns, kind, extra = _language_columns(experiment, path, split, prompts=prompts)
        return NewSamples(split, columns, [str(path)], rows, kind, extra)
    return NewSamples(split, _text_columns(experiment, path, split), [str(path)], rows)


def _read_lines(experiment: Experiment, path: Path, *, prompts: bool) -> NewSamples:
    """Read a text file with a text in each line that is not blank."""
    import datasets

    data = experiment.data
    pair = data.text_pair_column or (data.task in glue.TASKS and len(glue.TASKS[data.task].columns) > 1)
    check(not pair, f"{path}: this model takes pairs of texts: give a table with both ({', '.join(FORMATS)})")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except ValueError:
        raise InputError(f"{path}: not a text file (UTF-8)") from None
    numbers = [i for i, line in enumerate(lines, 1) if line.strip()]
    check(bool(numbers), f"{path}: every line is blank")
    words = [lines[i - 1].rstrip("\r") for i in numbers]
    named = list_columns(data.prompt) if data.prompt is not None else []
    template = data.prompt if data.prompt is not None and len(named) == 1 else ""
    column = named[0] if template else "text"
    split = datasets.Dataset.from_dict({column: words})
    return NewSamples(split, (column,), [str(path)], numbers, PROMPT if prompts else TEXT, template=template)


def _with_images(experiment: Experiment, path: Path, split: "Dataset") -> tuple["Dataset", str]:
    """Return the table with a column of images, and its name; paths in a column are relative to the file."""
    import datasets

    named = experiment.data.image_column
    names = [n for n, f in split.features.items() if isinstance(f, datasets.Image)]
    names += [n for n in (named, *IMAGE_COLUMNS) if n in split.features]
    check(bool(names), f"{path}: no image column among {', '.join(split.features)}; name it: -s data.image_column=NAME")
    column = named if named in split.features and named else names[0]
    feature: Any = split.features[column]
    kind = getattr(feature, "dtype", "struct")
    if isinstance(feature, datasets.Image) or kind in ("binary", "large_binary"):
        return split, column
    if isinstance(feature, dict) and set(feature) == {"bytes", "path"}:
        return split.cast_column(column, datasets.Image()), column
    check(kind in ("string", "large_string"), f"{path}: column {column!r} holds {kind} where images are expected")
    cells = [None if name is None else {"path": str(path.parent / name), "bytes": None} for name in split[column][:]]
    return datasets.Dataset.from_dict({column: cells}, features=datasets.Features({column: datasets.Image()})), column


def _text_columns(experiment: Experiment, path: Path, split: "Dataset") -> tuple[str, ...]:
    columns = texts.text_columns(experiment, str(path), split)
    if len(columns) == 1 and columns[0] not in split.features and not experiment.data.text_column:
        columns = (find_text_column(str(path), split, None, (experiment.data.label_column, "label")),)
    check_columns(str(path), split, columns)
    return columns


def _language_columns(
    experiment: Experiment, path: Path, split: "Dataset", *, prompts: bool
) -> tuple[tuple[str, ...], str, str]:
    """Return the column that is continued, what it holds, and the column that is appended to prompts or ''."""
    data, features = experiment.data, split.features
    if data.prompt_column is not None:
        check_columns(str(path), split, (data.prompt_column,))
        return (data.prompt_column,), PROMPT, ""
    if data.text_column is None and MESSAGES in features:
        return (MESSAGES,), MESSAGES, ""
    known = next((name for name, _ in PAIRS if name in features), None)
    if data.text_column is None and known is not None:
        return (known,), PROMPT, "input" if known == "instruction" and "input" in features else ""
    return (find_text_column(str(path), split, data.text_column),), PROMPT if prompts else TEXT, ""
