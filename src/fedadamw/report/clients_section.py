"""The part of a run's page on its clients' scores: charts, and a table of the clients that are served worst."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedadamw.io.escaping import escape_html, escape_text
from fedadamw.report.client_charts import Across, Names, against_chart, name_client, rounds_chart, sorted_chart
from fedadamw.report.client_mix import Mix, describe_classes
from fedadamw.report.client_scores import Evaluated
from fedadamw.report.metrics import TUNED, axis_format, format_metric, label
from fedadamw.report.run_charts import Chart

MOST = 10  # rows of the table
CLASSES = "classes"


class Table(NamedTuple):
    """Cells of text under their headings."""

    headings: list[str]
    rows: list[list[str]]


def client_charts(
    found: Sequence[Evaluated], mix: Mix | None, names: Names, **size: int
) -> dict[str, tuple[str, Chart]]:
    """Return the charts that there are numbers for: name -> (heading, chart); none before an evaluation of clients."""
    if not found:
        return {}
    last, metric = found[-1], label(found[-1].main)
    charts = {
        "spread": (f"{metric} of clients by round", rounds_chart(found, names, **size)),
        "sorted": (f"clients by {metric}", sorted_chart(last, names, **size)),
    }
    drawn = {name: (last, across) for name, across in _choose_values(last, mix).items()}
    if last.tuned is not None:
        gain = last._replace(metrics={last.main: last.tuned - last.scores})
        what = f"gain of {metric} by tuning"
        drawn["by-tuning"] = gain, Across(last.scores, what, f"{metric} before", what, form=axis_format(last.main))
    for name, (scores, across) in drawn.items():
        if len(np.unique(across.values[across.known & np.isfinite(scores.scores)])) > 1:
            charts[name] = (across.heading, against_chart(scores, across, names, **size))
    return charts


def worst_clients(last: Evaluated, mix: Mix | None, names: Names, most: int = MOST) -> Table:
    """Return the clients with the lowest scores, worst first: scores, numbers of samples, and classes."""
    samples, shares = _of_clients(last, None if mix is None else mix.samples), mix is not None
    known = np.isfinite(samples).any()
    metrics = [last.main, *(name for name in last.metrics if name not in (last.main, "loss", f"{TUNED}loss")), "loss"]
    metrics = list(dict.fromkeys(metrics))
    held_out = np.isfinite(last.samples).any()
    headings = ["client", *map(label, metrics)]
    headings += ["held-out samples"] * bool(held_out) + ["training samples"] * bool(known) + [CLASSES] * shares
    rows = []
    for i in last.worst_first()[:most]:
        client = int(last.clients[i])
        row = [escape_text(name_client(client, names))]
        row += [format_metric(name, float(last.metrics[name][i])) for name in metrics]
        row += [_count(last.samples[i])] if held_out else []
        row += [_count(samples[i])] if known else []
        row += [escape_text(describe_classes(mix, client))] if mix is not None else []
        rows.append(row)
    return Table(headings, rows)


def describe_worst(last: Evaluated, most: int = MOST) -> str:
    """Say which clients the table shows."""
    count = len(last.worst_first())
    shown = f"The {most} worst of {count:,} clients" if count > most else f"All {count} clients, worst first,"
    return f"{shown} by {label(last.main)} in round {last.round}, each on its own held-out samples."


def render_clients(last: Evaluated, mix: Mix | None, names: Names, charts: Iterable[str]) -> str:
    """Return the section as HTML, with an empty panel for each of the charts."""
    table = worst_clients(last, mix, names)
    head, *body = (
        "".join(f"<{tag}{_kind(name)}>{escape_html(cell)}" for name, cell in zip(table.headings, row, strict=True))
        for tag, row in [("th", table.headings), *(("td", row) for row in table.rows)]
    )
    rows = "".join(f"<tr>{row}\n" for row in body)
    panels = "".join(f"<div class=panel id={name}></div>" for name in charts)
    return (
        f"<h2>Scores of clients</h2>\n<div class=pair>{panels}</div>\n<div class='panel clients'>"
        f"<p>{escape_html(describe_worst(last))}</p>\n<table>\n<thead><tr>{head}</thead>\n"
        f"<tbody>\n{rows}</tbody></table></div>\n"
    )


def _kind(heading: str) -> str:
    """Return how cells below a heading are aligned: words on the left."""
    return " class=words" if heading == CLASSES else ""


def _choose_values(last: Evaluated, mix: Mix | None) -> dict[str, Across]:
    """Return what scores are drawn against, by chart: the clients' samples, or held-out ones, and largest classes."""
    samples, what = _of_clients(last, None if mix is None else mix.samples), "training samples of the client"
    if not np.isfinite(samples).any():
        samples, what = last.samples, "held-out samples of the client"
    shares = _of_clients(last, None if mix is None else mix.largest_share)
    metric, largest = label(last.main), "share of the client's largest class"
    return {
        "by-samples": Across(samples, f"{metric} by number of samples", what, metric, logarithmic=True),
        "by-classes": Across(shares, f"{metric} by class mix", largest, metric, form=".0%"),
    }


def _of_clients(last: Evaluated, values: np.ndarray | None) -> np.ndarray:
    """Return what `values` has of each evaluated client, (n,); NaN beyond its length."""
    found = np.full(len(last.clients), np.nan)
    if values is not None:
        known = (last.clients >= 0) & (last.clients < len(values))
        found[known] = values[last.clients[known]]
    return found


def _count(number: float) -> str:
    return f"{number:,.0f}" if np.isfinite(number) else "-"
