"""Tables for the terminal."""

from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedadamw.blocks.blocks import Blocks
from fedadamw.io.escaping import escape_text
from fedadamw.report.comparisons import comparison_headings, comparison_rows, describe_intervals
from fedadamw.report.metrics import epsilon_of, find_evaluations, find_score, format_metric, label, main_metric
from fedadamw.report.run_files import RecordDict
from fedadamw.report.study_files import Results
from fedadamw.report.study_table import paired_tests, table_headings, table_rows
from fedadamw.report.study_time import choose_levels, has_virtual_time, reach_headings, reach_rows
from fedadamw.report.virtual_time import format_virtual, has_clock, name_time
from fedadamw.task import Evaluation

Cell = Callable[[RecordDict], str]
SHADES = " ░▒▓█"
BYTES = 4  # of a float32


def _console(table: Table) -> Console:
    """Return the terminal or, if output goes elsewhere, a page as wide as the table."""
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=max(Console(width=400).measure(table).maximum, 80))


def print_run(records: Sequence[RecordDict], *, most: int = 8) -> None:
    """Print at most `most` of a run's evaluated rounds, evenly spaced, always the last one.

    Those in which its model was tested and its clients were evaluated, if both were; all rounds if neither was.
    """
    of = find_score(records)
    tested = find_evaluations(records, of) or list(range(len(records)))
    both = sorted({*tested} & {*find_evaluations(records, "clients_mean")})
    tested = both if len(both) > 1 else tested
    chosen = sorted({tested[round(k)] for k in np.linspace(0, len(tested) - 1, min(most, len(tested)))})
    columns = [*loss_columns(records), *(test_columns(records) if of == "test" else []), *client_columns(records)]
    if has_clock(records):
        columns.append((name_time(records), lambda r: format_virtual(r["virtual_s"])))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("round", "lr", *(heading for heading, _ in columns), "sent up so far"):
        table.add_column(name, justify="right")
    for i in chosen:
        r = records[i]
        sent = sum(earlier["up_bytes"] for earlier in records[: i + 1]) / 1e6
        table.add_row(
            str(r["round"]),
            f"{r['lr']:.2e}",
            *(cell(r) for _, cell in columns),
            f"{sent:,.1f} MB",
        )
    _console(table).print(table)


def loss_columns(records: Sequence[RecordDict]) -> list[tuple[str, Cell]]:
    """Return the column of the training loss or, with differential privacy, of the epsilon, with its heading."""
    if any(epsilon_of(r) is not None for r in records):
        return [("epsilon", lambda r: "-" if (spent := epsilon_of(r)) is None else f"{spent:.4g}")]
    return [("training loss", lambda r: _format_loss(r["train_loss"]))]


def test_columns(records: Sequence[RecordDict]) -> list[tuple[str, Cell]]:
    """Return the columns of the test loss and metrics, with their headings; none if it was never tested."""
    tested = find_evaluations(records, "test")
    if not tested:
        return []

    def metric(name: str) -> Cell:
        return lambda r: format_metric(name, (r["test_metrics"] or {}).get(name))

    metrics = [(f"test {label(name)}", metric(name)) for name in records[tested[0]]["test_metrics"] or ()]
    return [("test loss", lambda r: _format_loss(r["test_loss"])), *metrics]


def client_columns(records: Sequence[RecordDict]) -> list[tuple[str, Cell]]:
    """Return the columns of the clients' scores, with their headings; none if no clients were evaluated."""
    if not find_evaluations(records, "clients_mean"):
        return []
    name = main_metric(records, "clients_mean")
    tuned: list[tuple[str, Cell]] = [
        ("mean, tuned", lambda r: format_metric(name, (r.get("tuned") or {}).get("clients_mean")))
    ]
    return [
        (f"mean {label(name)} of clients", lambda r: format_metric(name, r.get("clients_mean"))),
        ("worst tenth", lambda r: format_metric(name, r.get("clients_worst_decile"))),
        *(tuned if records[-1].get("tuned") else []),
    ]


def _format_loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def print_grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print cells under their headings, the first column aligned left."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(Text(escape_text(name)), justify="right" if i else "left")
    for row in rows:
        table.add_row(*(Text(escape_text(cell)) for cell in row))
    _console(table).print(table)


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a line each."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:<{width}}  {value}")


def print_study(results: Results) -> None:
    """Print a study's table and, in further ones, the paired tests of its best variant against each other one."""
    print_grid(table_headings(results), table_rows(results))
    print(f"scores: {describe_intervals(results)}")
    if has_virtual_time(results) and choose_levels(results):
        print()
        print_grid(reach_headings(results), reach_rows(results))
    for title, tested in paired_tests(results):
        print(f"\n{title}:" if title else "")
        print_grid(comparison_headings(tested), comparison_rows(tested))


def print_blocks(name: str, blocks: Blocks) -> None:
    """Print every parameter with its class, shape and blocks; then B, d, B/d and the size of an upload."""
    table = Table("parameter", "class", "shape", box=None, header_style="bold", pad_edge=False)
    table.add_column("blocks", justify="right")
    for row in blocks.table():
        table.add_row(Text(row.parameter), row.kind, " x ".join(map(str, row.shape)), f"{row.blocks:,}")
    _console(table).print(table)
    b, d = blocks.B, blocks.d
    print(f"\n{escape_text(name)}: B = {b:,} blocks of d = {d:,} trainable numbers, B/d = {b / max(d, 1):.3%}")
    uploads = (
        ("FedAdamW (delta, block means of v)", d + b + 1),
        ("Local AdamW (delta)", d),
        ("whole v too", 2 * d + 1),
    )
    for what, numbers in uploads:
        print(f"upload per client and round, float32: {numbers * BYTES / 1e6:12,.2f} MB  {what}")


def print_partition(counts: np.ndarray, fingerprint: str, *, most: int = 20) -> None:
    """Print samples of each client and class (clients, classes) as shades, for `most` clients, and a summary."""
    table = Table("client", "samples", box=None, header_style="bold", pad_edge=False)
    table.add_column("classes 0 .. " + str(counts.shape[1] - 1), no_wrap=True)
    for i, row in enumerate(counts[:most]):
        table.add_row(str(i), f"{row.sum():,}", _shades(row))
    _console(table).print(table)
    if len(counts) > most:
        print(f"... and {len(counts) - most:,} more")
    sizes = counts.sum(1)
    print(
        f"{len(counts):,} clients, {sizes.sum():,} samples: {sizes.min():,} to {sizes.max():,} per client, "
        f"{(counts > 0).sum(1).mean():.1f} classes on average; fingerprint {fingerprint}"
    )


def _shades(row: Sequence[int] | np.ndarray) -> str:
    top = max(*row, 1)
    return "".join(SHADES[-(-int(n) * (len(SHADES) - 1) // int(top))] for n in row)


def print_evaluation(evaluation: Evaluation, samples: int) -> None:
    """Print loss and metrics on held-out samples, a line each."""
    print(f"held-out samples  {samples:,}")
    print(f"loss              {evaluation.loss:.4f}")
    for name, value in evaluation.metrics.items():
        print(f"{label(name):<17} {format_metric(name, value)}")
