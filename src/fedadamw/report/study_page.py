"""The page of a study: its charts, a table that sorts, the settings in which its runs differ, what is missing."""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, Literal

from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_html, escape_script
from fedadamw.report import study_charts as charts
from fedadamw.report.run_charts import save, styled
from fedadamw.report.study_charts import metric
from fedadamw.report.study_files import Missing, Results, Summary
from fedadamw.report.vega import library

FILES = ("curves.png", "report.html")


def write(results: Results, folder: Path) -> None:
    """curves.png and report.html of a study's `results`, in `folder`."""
    save(charts.picture(results), folder / "curves.png")
    write_atomically(folder / "report.html", page(results, folder.name).encode())


def page(results: Results, title: str) -> str:
    """The page as text, with the charts' library inside it."""
    template = Template((resources.files("fedadamw.report") / "comparison.html").read_text())
    drawn = charts.all_of(results)
    specs = {name: styled(chart).to_dict(validate=False) for name, (_, chart) in drawn.items()}
    return template.substitute(
        title=escape_html(title),
        about=escape_html(about(results)),
        panels="".join(_panel(name, heading) for name, (heading, _) in drawn.items()),
        missing=_missing(results["missing"]),
        columns="".join(f"<th><button>{escape_html(name)}</button>" for name, _ in columns(results)),
        rows="".join(_table_row(summary, columns(results)) for summary in results["summary"]),
        differing=_settings(results["settings"], differing=True),
        common=_settings(results["settings"], differing=False),
        library=library(),
        specs=escape_script(specs),
    )


def about(results: Results) -> str:
    """What was run, in a sentence."""
    seeds = max((s["seeds"] for s in results["summary"]), default=0)
    count = len(results["summary"])
    return f"{results['recipe']}: {count} variants, {seeds} seeds, {len(results['runs'])} runs on {results['device']}"


Number = Literal["train_loss", "rounds_to_target", "bytes_to_target", "up_bytes_a_client", "wall_s"]
Cell = Callable[[Summary], tuple[float | None, str]]


def columns(results: Results) -> list[tuple[str, Cell]]:
    """Headings of the table and, for each, a summary's number to sort by and its words."""
    goal = "target" if results["target"] is None else f"{results['target']:.1%}"

    def number(key: Number, form: Callable[[float], str], none: str = "-") -> Cell:
        def cell(s: Summary) -> tuple[float | None, str]:
            value = s[key]
            return value, none if value is None else form(value)

        return cell

    return [
        ("variant", lambda s: (None, s["variant"])),
        ("lr", lambda s: (s["settings"]["lr"], f"{s['settings']['lr']:g}")),
        (f"test {metric(results)}", lambda s: (s["score"], percent(s["score"], s["score_sd"]))),
        ("training loss", number("train_loss", lambda v: f"{v:.3f}")),
        (f"rounds to {goal}", number("rounds_to_target", lambda v: f"{v:,}", "not reached")),
        (f"MB to {goal}", number("bytes_to_target", lambda v: f"{v / 1e6:,.0f}", "not reached")),
        ("MB a client and round", number("up_bytes_a_client", lambda v: f"{v / 1e6:.3f}")),
        ("time", number("wall_s", lambda v: f"{v:,.0f} s")),
    ]


def percent(mean: float | None, sd: float | None) -> str:
    """Mean and standard deviation of a share, in percent; `-` where there is no mean."""
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


def _missing(missing: Sequence[Missing]) -> str:
    lines = [f"{m['variant']}, seed {m['seed']}: {m['error']}" for m in missing]
    if not lines:
        return ""
    return f"<div class='panel warning'><b>Missing</b><br>{'<br>'.join(map(escape_html, lines))}</div>"


def _settings(settings: Mapping[str, tuple[bool, Any]], *, differing: bool) -> str:
    """Rows of the settings in which runs differ (their values), or in which they agree."""
    rows = []
    for path, (differs, values) in settings.items():
        if differs == differing:
            text = ", ".join(map(str, values)) if differs else str(values)
            rows.append(f"<tr><th>{escape_html(path)}<td>{escape_html(text)}\n")
    return "".join(rows)
