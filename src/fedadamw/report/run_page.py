"""The HTML page of a run, which opens offline: charts, headline numbers, settings, manifest."""

import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from fedadamw.checkpoint import write_atomically
from fedadamw.io.escaping import escape_html, escape_script
from fedadamw.privacy.classes import describe_guarantee, list_assumptions
from fedadamw.report import client_scores, run_charts
from fedadamw.report.client_charts import rounds_chart
from fedadamw.report.client_mix import Mix, find_mix
from fedadamw.report.client_names import name_clients
from fedadamw.report.clients_section import client_charts, render_clients
from fedadamw.report.devices_section import device_charts, draw_along, render_devices, summarize_devices
from fedadamw.report.metrics import (
    begin_sentence,
    clients_metrics,
    epsilon_of,
    find_evaluations,
    find_score,
    format_metric,
    label,
    main_metric,
    metrics_of,
    name_score,
    score,
)
from fedadamw.report.run_files import Manifest, RecordDict
from fedadamw.report.run_status import FINISHED, RunStatus
from fedadamw.report.setting_tables import has_no_data, render_settings, select_used
from fedadamw.report.vega import vega_script
from fedadamw.report.virtual_time import has_clock
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.settings.section import flatten_settings

NO_DATA = "The server has no data to evaluate on; with training.client_evaluation the nodes do it."


class RunPage:
    """The page of one run, written again as the run goes on: what does not change is prepared once.

    settings: nested, as in config.yaml. counts: (clients, classes) samples of each class, of
    the first clients at least, all 0 if they are unknown. mix: of all clients, by default of those in `counts`.
    names: of natural clients.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        manifest: Manifest,
        counts: np.ndarray,
        classes: Sequence[str],
        mix: Mix | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.folder, self._settings = folder, settings
        self._mix, self._names = mix or find_mix(counts, classes), names
        self._partition: dict[str, Any] | None = None
        if counts.any():
            clients = manifest["partition"]["clients"]
            chart = run_charts.partition_chart(counts, classes, clients=clients, width="container")
            self._partition = run_charts.to_spec(chart)
        data = dict(manifest["data"])
        if settings["partition"]["kind"] == "nodes":
            data["server's own, not trained on"] = data.pop("train")
        if has_no_data(settings):
            del data["server's own, not trained on"], data["test"]
        given = settings.get("privacy")
        self._privacy = None if given is None else PrivacySettings.model_validate(given)
        self._empty = NO_DATA if has_no_data(settings) else "No evaluation so far."
        self._fixed = {
            "title": escape_html(folder.name),
            "settings": render_settings(select_used(settings)),
            "manifest": render_settings(flatten_settings({**manifest, "data": data})),
            "library": vega_script(),
        }
        self._template = Template((resources.files("fedadamw.report") / "page.html").read_text())

    def write(self, records: Sequence[RecordDict], status: RunStatus = FINISHED) -> None:
        """Write report.html, with the charts' library inside it."""
        write_atomically(self.folder / "report.html", self.render(records, status).encode())

    def render(self, records: Sequence[RecordDict], status: RunStatus = FINISHED) -> str:
        """Return the page as HTML. records: one or more."""
        specs = self._specs(records)
        scores, names = self._client_scores(records), name_clients(self.folder, self._names)
        of_clients = client_charts(scores, self._mix, names)
        of_devices = device_charts(self.folder, records, self._settings, names)
        specs |= {name: run_charts.to_spec(chart) for name, (_, chart) in {**of_clients, **of_devices}.items()}
        evaluated = any(record["test_metrics"] is not None for record in records)
        empty = "The evaluations have no metrics." if evaluated else self._empty
        about = {"refresh_s": status.refresh_s, "resume": status.resume, "written": time.time(), "empty": empty}
        placed = {"score", "losses", *of_clients, *of_devices}
        return self._template.substitute(
            self._fixed,
            cards="".join(_card(*card) for card in summarize(records)),
            status=escape_html(status.text),
            privacy=escape_html(self._describe_privacy(records[-1])),
            devices=render_devices(of_devices),
            clients=render_clients(scores[-1], self._mix, names, of_clients) if scores else "",
            panels="".join(f"<div class=panel id={name}></div>" for name in specs if name not in placed),
            specs=escape_script({"charts": specs, "along": draw_along(records), "status": about}),
        )

    def _describe_privacy(self, last: RecordDict) -> str:
        """Say what is guaranteed after the round of the record `last`, to whom and under which assumptions."""
        if self._privacy is None:
            return ""
        remote, epsilon = (self.folder / "events.jsonl").exists(), epsilon_of(last)
        known = "not known to the server: the ledgers of the nodes tell it" if epsilon is None else f"{epsilon:.4g}"
        said = begin_sentence(describe_guarantee(self._privacy, remote=remote))
        assumed = " ".join(list_assumptions(self._privacy, remote=remote))
        return f"{said}. Epsilon is {known}, delta {self._privacy.delta:g}. {assumed}"

    def _client_scores(self, records: Sequence[RecordDict]) -> list[client_scores.Evaluated]:
        return client_scores.read_scores(self.folder / client_scores.NAME, rounds=records[-1]["round"])

    def _specs(self, records: Sequence[RecordDict]) -> dict[str, Any]:
        """Return the charts in Vega-Lite's JSON, by name."""
        charts = {"losses": run_charts.loss_chart(records)} if run_charts.has_losses(records) else {}
        if find_evaluations(records):
            charts["score"] = run_charts.score_chart(records)
        if run_charts.has_epsilon(records):
            charts["epsilon"] = run_charts.epsilon_chart(records)
        specs = {name: run_charts.to_spec(chart) for name, chart in charts.items()}
        if self._partition is not None:
            specs["partition"] = self._partition
        table = run_charts.likelihood_table(records)
        if table:
            specs["likelihood"] = run_charts.to_spec(run_charts.likelihood_chart(table))
        if records[-1].get("federation"):
            specs["answers"] = run_charts.to_spec(run_charts.outcomes_chart(records))
        return specs


def write_run_page(
    folder: Path,
    records: Sequence[RecordDict],
    settings: Mapping[str, Any],
    manifest: Manifest,
    counts: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write curves.png and report.html into `folder`; see RunPage."""
    write_curves(folder, records)
    RunPage(folder, settings, manifest, counts, classes).write(records)


def write_curves(folder: Path, records: Sequence[RecordDict]) -> None:
    """Write curves.png into `folder`; not before the first round."""
    if records:
        scores = client_scores.read_scores(folder / client_scores.NAME, rounds=records[-1]["round"])
        others = [rounds_chart(scores, {}, width=420)] if scores else []
        if has_clock(records) and find_evaluations(records):
            others.insert(0, run_charts.score_chart(records, by="virtual", width=420))
        run_charts.save_chart(run_charts.curves_chart(records, others), folder / "curves.png")


def summarize(records: Sequence[RecordDict]) -> list[tuple[str, str]]:
    """Return the headline numbers as (label, text)."""
    last = records[-1]
    return [
        *_summarize_evaluations(records),
        *_summarize_clients(records),
        *([] if (epsilon := epsilon_of(last)) is None else [("epsilon", f"{epsilon:.4g}")]),
        *([("updates clipped to", f"{last['clip']:.3g}")] if "clip" in last else []),
        ("rounds", f"{last['round']:,}"),
        *_summarize_bytes(records),
        ("sent up in total", format_bytes(sum(r["up_bytes"] for r in records))),
        ("updates rejected", f"{sum(r['rejected'] for r in records):,}"),
        ("time", format_duration(sum(r["wall_s"] for r in records))),
        *_summarize_waiting(records),
        *summarize_devices(records),
    ]


def _summarize_bytes(records: Sequence[RecordDict]) -> list[tuple[str, str]]:
    """Return what a client sends and receives in the last round that had an answer; nothing if none had."""
    last = next((record for record in reversed(records) if record["clients"]), None)
    if last is None:
        return []
    return [
        ("sent up by a client and round", format_bytes(last["up_bytes"] / last["clients"])),
        ("sent down to a client and round", format_bytes(last["down_bytes"] / (last["clients"] + last["rejected"]))),
    ]


def _summarize_waiting(records: Sequence[RecordDict]) -> list[tuple[str, str]]:
    """Return how long the ranks waited for each other and its share of the rounds; nothing of a run with one rank."""
    shared = [(waited, record["wall_s"]) for record in records if (waited := record.get("waited_s")) is not None]
    if not shared:
        return []
    waited, passed = map(sum, zip(*shared, strict=True))
    return [("ranks waited for each other", f"{format_duration(waited)} ({waited / max(passed, 1e-9):.0%})")]


def _summarize_evaluations(records: Sequence[RecordDict]) -> list[tuple[str, str]]:
    """Return the last and the best score, or the last loss if there are no metrics; none before an evaluation."""
    of = find_score(records)
    evaluations = find_evaluations(records, of)
    if not evaluations:
        losses = [loss for record in records if (loss := record["test_loss"]) is not None]
        return [("test loss", f"{losses[-1]:.4g}")] if losses else []
    name, scores = main_metric(records, of), {r["round"]: s for r in records if (s := score(r, of)) is not None}
    best, last = max(scores, key=scores.__getitem__, default=None), records[evaluations[-1]]
    others = (metrics_of(last, of) or {}).items() if of == "test" else ()
    return [
        (name_score(name, of), format_metric(name, score(last, of))),
        ("best, in round", "-" if best is None else f"{format_metric(name, scores[best])}, {best}"),
        *((f"test {label(other)}", format_metric(other, value)) for other, value in others if other != name),
    ]


def _summarize_clients(records: Sequence[RecordDict]) -> list[tuple[str, str]]:
    """Return the last scores over clients, without their mean where that is the run's score; none without them."""
    found = find_evaluations(records, "clients_mean")
    if not found:
        return []
    last, name = records[found[-1]], main_metric(records, "clients_mean")
    parts = [
        (name_score(name, "clients_mean"), last.get("clients_mean")),
        (name_score(name, "clients_worst_decile"), last.get("clients_worst_decile")),
        ("standard deviation over clients", last.get("clients_std")),
        (f"{label(name)} of clients, by their samples", last.get("clients_weighted")),
    ]
    pooled = [
        (f"{label(other)} on all clients' samples", format_metric(other, value))
        for other, value in (clients_metrics(last) or {}).items()
        if other != name
    ]
    tuned = last.get("tuned") or {}
    parts += [
        (f"{text}, tuned", tuned[key])
        for text, key in ((parts[0][0], "clients_mean"), (parts[1][0], "clients_worst_decile"))
        if key in tuned
    ]
    own = 1 if find_score(records) == "clients_mean" else 0  # it is the first card already
    return [*((text, format_metric(name, value)) for text, value in parts[own:]), *pooled]


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
