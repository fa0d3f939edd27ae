"""Write predictions as CSV or JSON lines: the file appears when all of them are in it."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from fedadamw.io.disk import report_full_disk
from fedadamw.trained.predict import Prediction
from fedadamw.validation import check

CSV, JSON_LINES = ".csv", ".jsonl"


def check_new_file(path: Path, endings: Sequence[str] = (CSV, JSON_LINES)) -> None:
    """Raise InputError if predictions cannot be written to `path`: another ending, no folder, or a file is there."""
    check(path.suffix in endings, f"--out {path}: must end in {' or '.join(endings)}")
    check(path.parent.is_dir(), f"--out {path}: there is no folder {path.parent}")
    check(not path.exists(), f"--out {path}: exists; choose another file")


def write_predictions(path: Path, predictions: Iterable[Prediction], top: int, *, every: bool) -> int:
    """Write all predictions to the new file `path`; return how many.

    top: how many of the likeliest classes. every: also the probability of each class.
    """
    rows = (prediction_row(prediction, top, every=every) for prediction in predictions)
    with _new_file(path) as file:
        return _write_csv(file, rows) if path.suffix == CSV else _write_lines(file, map(json_line, rows))


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write all lines to the new file `path`; return how many."""
    with _new_file(path) as file:
        return _write_lines(file, lines)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """Open a file that appears as `path` if the block ends well, and not at all otherwise."""
    temporary = path.with_name(path.name + ".new")
    try:
        with report_full_disk(path), open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def prediction_row(prediction: Prediction, top: int, *, every: bool) -> dict[str, Any]:
    """Return a prediction as named cells."""
    p = prediction
    row: dict[str, Any] = {"file": p.file, "row": p.row} if p.row is not None else {"file": p.file}
    row |= dict(zip(("text", "text_pair") if p.response is None else ("prompt",), p.texts, strict=False))
    if p.response is not None:
        return row | {"response": p.response}
    if p.number is not None:
        return row | {"prediction": p.number}
    for place, (label, probability) in enumerate(islice(p.probabilities.items(), top), 1):
        end = "" if place == 1 else str(place)
        row |= {f"label{end}": label, f"probability{end}": probability}
    return row | ({f"p({label})": p.probabilities[label] for label in sorted(p.probabilities)} if every else {})


def _write_csv(file: IO[str], rows: Iterator[dict[str, Any]]) -> int:
    first = next(rows, None)
    names: Sequence[str] = list(first or ("file", "label", "probability"))
    if "row" not in names:
        names = [names[0], "row", *names[1:]]  # image files and tables may be mixed
    out = csv.DictWriter(file, names)
    out.writeheader()
    count = 0
    for count, row in enumerate(chain([first] if first else [], rows), 1):  # noqa: B007
        out.writerow(row)
    return count


def json_line(row: Mapping[str, Any]) -> str:
    """Return named cells as a line of JSON, without its end."""
    return json.dumps(row, ensure_ascii=False)


def _write_lines(file: IO[str], lines: Iterable[str]) -> int:
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007
        file.write(line + "\n")
    return count
