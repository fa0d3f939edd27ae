"""The HTML page of a study: charts, a sortable table, settings that differ and settings in common, missing runs."""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Literal

from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_html, escape_script
from fedadamw.report.run_charts import apply_style, save_chart
from fedadamw.report.study_charts import all_charts, overview_chart, score_label
from fedadamw.report.study_files import Missing, Results, Summary
from fedadamw.report.vega import vega_script

PAGE_FILES = ("curves.png", "report.html")


def write_study_page(results: Results, folder: Path) -> None:
    """Write curves.png and report.html into `folder`."""
    save_chart(overview_chart(results), folder / "curves.png")
    write_atomically(folder / "report.html", render(results, folder.name).encode())


def render(results: Results, title: str) -> str:
    """Return the page as HTML, with the charts' library inside it."""
    template = Template((resources.files("fedadamw.report") / "comparison.html").read_text())
    charts = all_charts(results)
    specs = {name: apply_style(chart).to_dict(validate=False) for name, (_, chart) in charts.items()}
    return template.substitute(
        title=escape_html(title),
        about=escape_html(describe(results)),
        panels="".join(_panel(name, heading) for name, (heading, _) in charts.items()),
        missing=_missing_runs(results["missing"]),
        columns="".join(f"<th><button>{escape_html(name)}</button>" for name, _ in table_columns(results)),
        rows="".join(_table_row(summary, table_columns(results)) for summary in results["summary"]),
        differing=_setting_rows(results["settings"], differing=True),
        common=_setting_rows(results["settings"], differing=False),
        library=vega_script(),
        specs=escape_script(specs),
    )


def describe(results: Results) -> str:
    """Describe in a sentence what was run."""
    seeds = max((s["seeds"] for s in results["summary"]), default=0)
    count = len(results["summary"])
    return f"{results['recipe']}: {count} variants, {seeds} seeds, {len(results['runs'])} runs on {results['device']}"


Cell = Callable[[Summary], tuple[float | None, str]]  # the value that a column is sorted by, and its text
Column = Literal["train_loss", "rounds_to_target", "bytes_to_target", "up_bytes_a_client", "wall_s"]


def table_columns(results: Results) -> list[tuple[str, Cell]]:
    """Return the headings of the table, each with the cell of a summary."""
    goal = "target" if results["target"] is None else f"{results['target']:.1%}"

    def number(key: Column, form: Callable[[float], str], none: str = "-") -> Cell:
        return lambda s: (value := s[key], none if value is None else form(value))

    return [
        ("variant", lambda s: (None, s["variant"])),
        ("lr", lambda s: (s["settings"]["lr"], f"{s['settings']['lr']:g}")),
        (f"test {score_label(results)}", lambda s: (s["score"], format_percent(s["score"], s["score_sd"]))),
        ("training loss", number("train_loss", lambda v: f"{v:.3f}")),
        (f"rounds to {goal}", number("rounds_to_target", lambda v: f"{v:,}", "not reached")),
        (f"MB to {goal}", number("bytes_to_target", lambda v: f"{v / 1e6:,.0f}", "not reached")),
        ("MB a client and round", number("up_bytes_a_client", lambda v: f"{v / 1e6:.3f}")),
        ("time", number("wall_s", lambda v: f"{v:,.0f} s")),
    ]


def format_percent(mean: float | None, sd: float | None) -> str:
    """Format a mean and standard deviation in percent; `-` if there is no mean."""
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}") + " %"


def _panel(name: str, heading: str) -> str:
    return f"<section class=panel><h3>{escape_html(heading)}</h3><div id={name}></div></section>\n"


def _table_row(summary: Summary, cells: Sequence[tuple[str, Cell]]) -> str:
    parts = []
    for _, cell in cells:
        number, text = cell(summary)
        value = "" if number is None else f' data-value="{number}"'
        parts.append(f"<td{value}>{escape_html(text)}")
    return f"<tr>{''.join(parts)}\n"


def _missing_runs(missing: Sequence[Missing]) -> str:
    lines = [f"{m['variant']}, seed {m['seed']}: {m['error']}" for m in missing]
    if not lines:
        return ""
    return f"<div class='panel warning'><b>Missing</b><br>{'<br>'.join(map(escape_html, lines))}</div>"


def _setting_rows(settings: Mapping[str, tuple[bool, object]], *, differing: bool) -> str:
    """Return table rows of the settings in which runs differ, or of those in common."""
    rows = []
    for path, (differs, values) in settings.items():
        if differs == differing:
            text = ", ".join(map(str, values)) if isinstance(values, list) and differs else str(values)
            rows.append(f"<tr><th>{escape_html(path)}<td>{escape_html(text)}\n")
    return "".join(rows)
