"""What a run or a study from Python returns."""

import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedadamw import checkpoint
from fedadamw.api.picture import Picture
from fedadamw.engine.best import read_best
from fedadamw.engine.record import Record
from fedadamw.io.json_values import replace_nan
from fedadamw.report.client_charts import rounds_chart
from fedadamw.report.client_scores import NAME, read_lines, read_scores
from fedadamw.report.devices_section import device_charts
from fedadamw.report.metrics import TUNED, epsilon_of, find_evaluations
from fedadamw.report.run_charts import Chart, epsilon_chart, has_epsilon, has_losses, loss_chart, score_chart
from fedadamw.report.run_files import RecordDict, ScoresDict
from fedadamw.report.study_charts import OF_PICTURE, all_charts
from fedadamw.report.study_files import Results
from fedadamw.report.virtual_time import has_clock
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.client_model import open_client
from fedadamw.validation import InputError, check, check_one_of, shorten
from fedadamw.vector import Layout, statistics, trainable

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Result:
    """A run that has ended.

    rounds: that it was to have; fewer records mean that a callback or privacy.budget ended it. folder: with the
    run's files; None on ranks other than 0. temporary: no `out` was given, so the folder is deleted with this
    object.
    """

    model: nn.Module  # with the global weights, in evaluation mode; personal parameters are those of the start
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

    @property
    def epsilon(self) -> float | None:
        """With differential privacy: what the client that has spent most has spent; inf without noise."""
        return self.records[-1].epsilon if self.records else None

    def to_pandas(self) -> "DataFrame":
        """Return the records as a DataFrame, a row each; a metric is a column of its own.

        Of the held-out set such as `test_accuracy`, of all clients' own held-out samples `clients_pooled_accuracy`.
        """
        import pandas as pd

        return pd.DataFrame([_flatten(record) for record in self.records])

    @property
    def client_scores(self) -> list[ScoresDict]:
        """The evaluations of the clients on their own held-out samples, as client_scores.jsonl has them.

        Each has its `round`, and lists over the evaluated `clients`: `samples`, `loss` and every metric. Empty on ranks
        other than 0.
        """
        return [] if self.folder is None else read_lines(self.folder / NAME)

    def clients_to_pandas(self) -> "DataFrame":
        """Return the evaluations of the clients as a DataFrame, a row for each round and client."""
        import pandas as pd

        tables = [pd.DataFrame(line) for line in self.client_scores]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def plot(self, what: str | None = None) -> Picture:
        """Draw by round: `score`, the main metric, `loss`, of clients and held out, `clients`, their scores, `epsilon`.

        With simulated devices: the score by `virtual` time, `staleness`, `idle`, `work`, `jobs` and a `timeline`. By
        default the score, or the losses of a run without metrics.
        """
        records = [_to_line(record) for record in self.records]
        scores = [] if self.folder is None else read_scores(self.folder / NAME)
        charts: dict[str, Callable[[], Chart]] = {"score": lambda: score_chart(records, width=420)}
        if not find_evaluations(records):
            del charts["score"]
        if has_losses(records):
            charts["loss"] = lambda: loss_chart(records, width=420)
        if has_epsilon(records):
            charts["epsilon"] = lambda: epsilon_chart(records, width=420)
        if scores:
            charts["clients"] = lambda: rounds_chart(scores, {}, width=420)
        if has_clock(records) and "score" in charts:
            charts["virtual"] = lambda: score_chart(records, by="virtual", width=420)
        if self.folder is not None:
            settings = load(str(RunFolder(self.folder).config)).model_dump(mode="json")
            found = device_charts(self.folder, records, settings, {}, width=420)
            drawn = {name: chart for name, (_, chart) in found.items()}
            charts |= {name: partial(drawn.__getitem__, name) for name in drawn}
        what = next(iter(charts)) if what is None else what
        check_one_of("plot", what, charts)
        return Picture(charts[what]())

    def load_client(self, client: int) -> None:
        """Put the model of one client into `model`: what is shared, with the parameters that this client keeps.

        The run needs settings={"personal.parameters": [...]}, or an algorithm whose clients have models of their own.
        Raises InputError if they have none, or the client has not taken part.
        """
        check(self.folder is not None, "this rank has no checkpoint: rank 0 has")
        assert self.folder is not None
        open_client(RunFolder(self.folder), self.model, _to_number(client))
        self.model.eval()

    def load_best(self) -> int:
        """Put the weights of the best evaluated round into `model` and return its number.

        The run needs `settings={"keep_best": True}`. A round that was chosen on the held-out set looks better there
        than on new data.
        """
        check(self.folder is not None, "this rank has no checkpoint: rank 0 has")
        assert self.folder is not None
        best = read_best(checkpoint.read(RunFolder(self.folder).state, "checkpoint")[0])
        if best is None:
            raise InputError("the run kept no best round: run it with settings={'keep_best': True}")
        check(best.model["base"].numel() == 0, "a model with exactly averaged adapters: use `fedadamw export --best`")
        with torch.no_grad():
            for name, value in Layout.of(self.model).views(best.model["server.x"]).items():
                trainable(self.model)[name].copy_(value)
            floating = statistics(self.model)
            for name, value in Layout.of_tensors(floating).views(best.model["statistics"]).items():
                floating[name].copy_(value)
        return best.round

    def save_report(self, path: str | Path) -> Path:
        """Write the run's page, which opens offline, to a file whose name ends in .html, and return its path."""
        path = Path(path)
        check(self.folder is not None, "this rank has no report: rank 0 has")
        check(path.suffix == ".html", f"{path}: must end in .html")
        assert self.folder is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / "report.html", path)
        return path

    def export(self, to: str | Path, *, merged: bool = False) -> Path:
        """Write the model of a recipe's run for `from_pretrained` into the new folder `to`, as `fedadamw export` does.

        A model with adapters is written as an adapter for peft; with `merged`, as a whole model.
        """
        from fedadamw.trained.export import export
        from fedadamw.trained.load import open_run

        check(self.folder is not None, "this rank has no model's file: rank 0 has")
        assert self.folder is not None
        export(open_run(self.folder), Path(to), merged=merged)
        return Path(to)

    def __repr__(self) -> str:
        parts = [f"rounds={len(self.records)}", f"loss={nan if self.loss is None else self.loss:.4g}"]
        parts += [f"{name}={value:.4g}" for name, value in self.metrics.items()]
        parts += [] if self.epsilon is None else [f"epsilon={self.epsilon:.4g}"]
        parts += [f"clients_mean={r.clients_mean:.4g}" for r in self.records[-1:] if r.clients_mean is not None]
        if self.folder is not None and not self.temporary:
            parts.append(f"folder={str(self.folder)!r}")
        return f"Result({', '.join(parts)})"


@dataclass(frozen=True)
class Comparison:
    """A study that has ended."""

    results: Results  # as in results.json
    folder: Path

    def to_pandas(self) -> "DataFrame":
        """Return a row for each run and evaluated round: variant, seed, round, score, losses, bytes sent.

        Beside them the scores over clients, where a round has them.
        """
        import pandas as pd

        tables = []
        for run in self.results["runs"]:
            columns = {name: dict(run)[name] for name in ("round", "score", "test_loss", "train_loss", "sent_bytes")}
            about = {"variant": run["variant"], **run["label"], "seed": run["seed"]}
            table = pd.DataFrame({**about, **columns})
            if "clients" in run:
                of_clients = pd.DataFrame(run["clients"]).drop(columns="sent_bytes").assign(**about)
                table = table.merge(of_clients, how="outer", on=[*about, "round"])
            tables.append(table)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    def plot(self, what: str = "score") -> Picture:
        """Draw the variants' means over seeds, with 95% intervals and each seed's points.

        what: by round, `score`, `train` and `test` (losses), `clients_mean` and `clients_worst_decile`; by bytes sent,
        `bytes`; after the last round, `final`; by the numeric setting that varies, `value`; with
        `training.diagnostics`, `drift`, `cosine`, `update_norm`, `v_dispersion`, `v_variance`, and by class of block
        `v_variance-kinds`, `update_norm-kinds`.
        """
        charts = all_charts(self.results, OF_PICTURE)
        check_one_of("plot", what, charts)
        heading, chart = charts[what]
        return Picture(chart.properties(title=heading))

    def _repr_markdown_(self) -> str:
        """Show the table in a notebook."""
        return (self.folder / "table.md").read_text()


def _to_number(client: Any) -> int:
    """Return the number of a client as an int, also of numpy's or torch's; InputError for anything else."""
    try:
        check(not isinstance(client, bool), f"client={client}: give the number of a client")
        return index(client)
    except TypeError:
        raise InputError(f"client={shorten(client)}: give the number of a client") from None


def read_records(folder: RunFolder) -> list[Record]:
    """Return the records of a run's folder."""
    losses = load(str(folder.config)).privacy is None
    return [_to_record(record, losses=losses) for record in folder.records()]


def _to_record(line: RecordDict, *, losses: bool = True) -> Record:
    """Return a line of metrics.jsonl as a Record; what was not finite is NaN. losses: whether training losses are."""
    values: dict[str, Any] = {**line, "epsilon": epsilon_of(line)}
    if values["train_loss"] is None and losses:
        values["train_loss"] = nan
    if values["test_metrics"] is not None:
        values["test_metrics"] = {k: nan if v is None else v for k, v in values["test_metrics"].items()}
        values["test_loss"] = nan if values["test_loss"] is None else values["test_loss"]
    of_clients = [name for name in values if name.startswith(("clients_", "tuned"))]  # only if clients were evaluated
    values |= {name: _restore_nan(values[name]) for name in of_clients}
    return Record(**values)


def _restore_nan(value: Any) -> Any:
    """Return a number, or numbers by name, with NaN in place of None."""
    if isinstance(value, Mapping):
        return {name: _restore_nan(inner) for name, inner in value.items()}
    return nan if value is None else value


def _to_line(record: Record) -> RecordDict:
    """Return a Record as a line of metrics.jsonl has it; a NaN is None."""
    line: RecordDict = replace_nan(vars(record))
    if record.epsilon is None:
        del line["epsilon"]
    return line


def _flatten(record: Record) -> dict[str, Any]:
    row = {k: v for k, v in vars(record).items() if not isinstance(v, Mapping) and k not in NESTED}
    test = {f"test_{name}": value for name, value in (record.test_metrics or {}).items()}
    return {
        **row,
        **test,
        **{f"clients_pooled_{name}": value for name, value in (record.clients_metrics or {}).items()},
        **{f"{TUNED}{name}": v for name, v in (record.tuned or {}).items() if not isinstance(v, Mapping)},
    }


NESTED = ("test_metrics", "diagnostics", "federation", "clients_metrics", "tuned")
