"""The HTML page of a study: charts, a sortable table, settings that differ and settings in common, missing runs."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template

from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_html, escape_script
from fedadamw.report.comparisons import comparison_headings, comparison_rows, describe_intervals, describe_tests
from fedadamw.report.run_charts import apply_style, save_chart
from fedadamw.report.setting_tables import render_settings, render_table
from fedadamw.report.study_charts import all_charts, describe_bands, overview_chart
from fedadamw.report.study_files import Missing, Results, Summary
from fedadamw.report.study_table import Cell, paired_tests, table_columns
from fedadamw.report.study_time import choose_levels, describe_reach, has_virtual_time, reach_headings, reach_rows
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
        intervals=escape_html(f"Scores: {describe_intervals(results)}"),
        reach=_reach(results),
        tests=_tests(results),
        bands=escape_html(describe_bands(results)),
        differing=render_table(_differing(results)),
        common=render_settings((path, value) for path, (differs, value) in results["settings"].items() if not differs),
        library=vega_script(),
        specs=escape_script(specs),
    )


def describe(results: Results) -> str:
    """Describe in a sentence what was run."""
    seeds = max((s["seeds"] for s in results["summary"]), default=0)
    count = len(results["summary"])
    return f"{results['recipe']}: {count} variants, {seeds} seeds, {len(results['runs'])} runs on {results['device']}"


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


def _reach(results: Results) -> str:
    """Return the section with the virtual times to scores; empty without a clock or a target."""
    if not has_virtual_time(results) or not choose_levels(results):
        return ""
    head = "".join(f"<th>{escape_html(name)}" for name in reach_headings(results))
    rows = "".join(f"<tr>{''.join(f'<td>{escape_html(cell)}' for cell in row)}\n" for row in reach_rows(results))
    return (
        f"<h2>Virtual time to a score</h2>\n<div class='panel scroll'><table class='tests reach'>\n"
        f"<thead><tr>{head}</thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        f"<p>{escape_html(describe_reach(results))}</p>\n"
    )


def _tests(results: Results) -> str:
    """Return the section with the paired tests; empty if nothing was compared."""
    parts = []
    for title, tested in paired_tests(results):
        head = "".join(f"<th>{escape_html(name)}" for name in comparison_headings(tested))
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape_html(cell)}' for cell in row)}\n" for row in comparison_rows(tested)
        )
        parts.append(
            f"<h2>{escape_html(f'{title}: paired tests' if title else 'Paired tests')} over seeds</h2>\n"
            f"<div class='panel scroll'><table class=tests>\n<thead><tr>{head}</thead>\n<tbody>\n{rows}</tbody></table>"
            f"</div>\n<p>{escape_html(describe_tests(tested))}</p>\n"
        )
    return "".join(parts)


def _differing(results: Results) -> list[tuple[str, str]]:
    """Return the settings in which runs differ, each with its values and, if variants differ, whose they are.

    The algorithm's name is left out, as the variants' names have it.
    """
    rows = []
    for path, (differs, values) in results["settings"].items():
        owners = results["whose"].get(path)
        if path == "algorithm.name":
            continue
        if owners is not None:
            rows += [
                (path if i == 0 else "", f"{owner['value']}: {', '.join(owner['variants'])}")
                for i, owner in enumerate(owners)
            ]
        elif differs:
            rows.append((path, ", ".join(map(str, values)) if isinstance(values, list) else str(values)))
    return rows
