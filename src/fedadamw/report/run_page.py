"""The HTML page of a run, which opens offline: charts, headline numbers, settings, manifest."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_html, escape_script
from fedadamw.report import run_charts
from fedadamw.report.metrics import find_evaluations, format_metric, label, main_metric, score
from fedadamw.report.run_files import Manifest, RecordDict
from fedadamw.report.setting_tables import render_settings
from fedadamw.report.vega import vega_script
from fedadamw.settings.section import flatten_settings


def write_run_page(
    folder: Path,
    records: Sequence[RecordDict],
    settings: Mapping[str, Any],
    manifest: Manifest,
    counts: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write curves.png and report.html into `folder`.

    settings: nested, as in config.yaml. counts: (clients, classes) samples of each class, all 0 if they are unknown.
    """
    run_charts.save_chart(run_charts.curves_chart(records), folder / "curves.png")
    charts = {
        "score": run_charts.apply_style(run_charts.score_chart(records)),
        "losses": run_charts.apply_style(run_charts.loss_chart(records)),
    }
    if counts.any():
        charts["partition"] = run_charts.apply_style(run_charts.partition_chart(counts, classes, width="container"))
    if records[-1].get("federation"):
        charts["answers"] = run_charts.apply_style(run_charts.outcomes_chart(records))
    data = dict(manifest["data"])
    if settings["partition"]["kind"] == "nodes":
        data["server's own, not trained on"] = data.pop("train")
    text = render(folder.name, records, settings, {**manifest, "data": data}, charts)
    write_atomically(folder / "report.html", text.encode())


def render(
    title: str,
    records: Sequence[RecordDict],
    settings: Mapping[str, object],
    manifest: Mapping[str, object],
    charts: Mapping[str, run_charts.Chart],
) -> str:
    """Return the page as HTML, with the charts' library inside it."""
    template = Template((resources.files("fedadamw.report") / "page.html").read_text())
    specs = {name: chart.to_dict(validate=False) for name, chart in charts.items()}
    return template.substitute(
        title=escape_html(title),
        cards="".join(_card(*card) for card in _summary(records)),
        settings=render_settings(flatten_settings(settings)),
        manifest=render_settings(flatten_settings(manifest)),
        library=vega_script(),
        panels="".join(f"<div class=panel id={name}></div>" for name in charts if name not in ("score", "losses")),
        specs=escape_script(specs),
    )


def _summary(records: Sequence[RecordDict]) -> list[tuple[str, str]]:
    """Return the headline numbers as (label, text)."""
    name, scores = main_metric(records), {r["round"]: s for r in records if (s := score(r)) is not None}
    best = max(scores, key=scores.__getitem__, default=None)
    last, tested = records[-1], records[find_evaluations(records)[-1]]["test_metrics"] or {}
    return [
        (f"test {label(name)}", format_metric(name, tested[name])),
        ("best, in round", "-" if best is None else f"{format_metric(name, scores[best])}, {best}"),
        *((f"test {label(other)}", format_metric(other, value)) for other, value in tested.items() if other != name),
        ("rounds", f"{last['round']:,}"),
        ("sent up by a client and round", format_bytes(last["up_bytes"] / last["clients"])),
        ("sent down to a client and round", format_bytes(last["down_bytes"] / (last["clients"] + last["rejected"]))),
        ("sent up in total", format_bytes(sum(r["up_bytes"] for r in records))),
        ("updates rejected", f"{sum(r['rejected'] for r in records):,}"),
        ("time", format_duration(sum(r["wall_s"] for r in records))),
    ]


def format_bytes(number: float) -> str:
    """Format a number of bytes: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def format_duration(seconds: float) -> str:
    """Format seconds: `1 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _card(label: str, value: str) -> str:
    return f"<div class=card><b>{escape_html(value)}</b><span>{escape_html(label)}</span></div>\n"
