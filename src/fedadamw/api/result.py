"""What a run or a study from Python returns."""

import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fedadamw.engine.record import Record
from fedadamw.report.run_files import RecordDict
from fedadamw.report.study_files import Results
from fedadamw.runner.folder import RunFolder
from fedadamw.validation import check

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    rounds: that it was to have; fewer records mean that a callback stopped it. folder: with the run's files; None on
    ranks other than 0. temporary: no `out` was given, so the folder is deleted with this object.
    """

    model: nn.Module  # with the global weights, in evaluation mode
    records: list[Record]  # one a round
    rounds: int
    folder: Path | None
    temporary: bool = False

    def __post_init__(self) -> None:
        if self.temporary and self.folder is not None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def stopped(self) -> bool:
        """Whether the run ended before its last round."""
        return len(self.records) < self.rounds

    @property
    def loss(self) -> float | None:
        """The held-out loss of the last evaluation."""
        return next((r.test_loss for r in reversed(self.records) if r.test_loss is not None), None)

    @property
    def metrics(self) -> dict[str, float]:
        """The held-out metrics of the last evaluation, by name."""
        return next((dict(r.test_metrics) for r in reversed(self.records) if r.test_metrics is not None), {})

    def to_pandas(self) -> "DataFrame":
        """Return the records as a DataFrame, a row each; a metric is a column of its own, such as `test_accuracy`."""
        import pandas as pd

        return pd.DataFrame([_flatten(record) for record in self.records])

    def save_report(self, path: str | Path) -> Path:
        """Write the run's page, which opens offline, to a file whose name ends in .html, and return its path."""
        path = Path(path)
        check(self.folder is not None, "this rank has no report: rank 0 has")
        check(path.suffix == ".html", f"{path}: must end in .html")
        assert self.folder is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / "report.html", path)
        return path

    def __repr__(self) -> str:
        parts = [f"rounds={len(self.records)}", f"loss={nan if self.loss is None else self.loss:.4g}"]
        parts += [f"{name}={value:.4g}" for name, value in self.metrics.items()]
        if self.folder is not None and not self.temporary:
            parts.append(f"folder={str(self.folder)!r}")
        return f"Result({', '.join(parts)})"


@dataclass(frozen=True)
class Comparison:
    """A study that has ended."""

    results: Results  # as in results.json
    folder: Path

    def to_pandas(self) -> "DataFrame":
        """Return a row for each run and evaluated round: variant, seed, round, score, losses, bytes sent."""
        import pandas as pd

        tables = []
        for run in self.results["runs"]:
            columns = {name: dict(run)[name] for name in ("round", "score", "test_loss", "train_loss", "sent_bytes")}
            tables.append(pd.DataFrame({"variant": run["variant"], **run["label"], "seed": run["seed"], **columns}))
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook."""
        return (self.folder / "table.md").read_text()


def read_records(folder: RunFolder) -> list[Record]:
    """Return the records of a run's folder."""
    return [_to_record(record) for record in folder.records()]


def _to_record(line: RecordDict) -> Record:
    """Return a line of metrics.jsonl as a Record; what was not finite is NaN."""
    values: dict[str, Any] = dict(line)
    if values["train_loss"] is None:
        values["train_loss"] = nan
    if values["test_metrics"] is not None:
        values["test_metrics"] = {k: nan if v is None else v for k, v in values["test_metrics"].items()}
        values["test_loss"] = nan if values["test_loss"] is None else values["test_loss"]
    return Record(**values)


def _flatten(record: Record) -> dict[str, Any]:
    row = {k: v for k, v in vars(record).items() if not isinstance(v, Mapping) and k not in NESTED}
    return {**row, **{f"test_{name}": value for name, value in (record.test_metrics or {}).items()}}


NESTED = ("test_metrics", "diagnostics", "federation")
