"""Collects the runs of a study into one JSON object, from which tables, charts and pages are made."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.io.escaping import escape_markdown, escape_text
from fedadamw.io.json_values import replace_nan
from fedadamw.report.metrics import evaluated, label, main, score
from fedadamw.report.run_files import Manifest, RecordDict
from fedadamw.report.study_charts import variants
from fedadamw.report.study_files import Missing, Results, RunResult, Summary
from fedadamw.report.study_page import columns
from fedadamw.settings.section import flatten_settings
from fedadamw.study.plan import Run
from fedadamw.study.workers import Ended

FORMAT = 2


def collect(recipe: str, runs: Sequence[Run], ended: Iterable[Ended] = (), target: float | None = None) -> Results:
    """Return the records of all finished runs, why the others did not finish, and a summary of each variant over seeds.

    A run whose last score is not a number is in both: it is drawn, and listed as missing.
    target: the score for rounds_to_target and bytes_to_target; by default the median of the variants' final scores.
    """
    errors = {end.run.name: end.error for end in ended if end.error}
    results, manifests, metrics, errors_in_files = _read_finished(runs)
    errors |= errors_in_files
    groups = list(variants(results).values())
    if target is None:
        target = _median_score(groups)
    versions = manifests[0]["versions"] if manifests else {}
    return {
        "format": FORMAT,
        "recipe": recipe,
        "commit": distinct(manifest["commit"] for manifest in manifests),
        "device": distinct(manifest["device"] for manifest in manifests),
        "versions": {name: distinct(manifest["versions"].get(name) for manifest in manifests) for name in versions},
        "metric": distinct(metrics),
        "target": None if target is None else round(target, 4),
        "settings": settings_by_path(run.experiment.model_dump(mode="json") for run in runs),
        "summary": [summary(group, target) for group in groups],
        "runs": results,
        "missing": _list_missing(runs, results, errors),
    }


def _read_finished(runs: Sequence[Run]) -> tuple[list[RunResult], list[Manifest], list[str], dict[str, str]]:
    """Return results, manifests and metrics of the finished runs, and by run name what is wrong with a run's files."""
    results, manifests, metrics, errors = [], [], [], {}
    for run in runs:
        if run.done:
            try:
                manifest, records = run.folder.read_manifest(), run.folder.records()
            except CheckpointError as error:
                errors[run.name] = str(error)
                continue
            results.append(result_of(run, manifest, records))
            manifests.append(manifest)
            metrics.append(main(records))
            if why := not_a_number(records):
                errors[run.name] = why
    return results, manifests, metrics, errors


def _median_score(groups: Iterable[Sequence[RunResult]]) -> float | None:
    """Return the median of the variants' mean final scores."""
    means = [mean for group in groups if (mean := _mean_of_all([final(result) for result in group])) is not None]
    return statistics.median(means) if means else None


def _list_missing(runs: Iterable[Run], results: Iterable[RunResult], errors: Mapping[str, str]) -> list[Missing]:
    """Return the runs without a final score, with the reason."""
    scored = {result["name"] for result in results if final(result) is not None}
    return [
        {"variant": name_of(run.label), "seed": run.experiment.seed, "error": errors.get(run.name, "not run")}
        for run in runs
        if run.name not in scored
    ]


def result_of(run: Run, manifest: Manifest, records: Sequence[RecordDict]) -> RunResult:
    """Return one run's label, seed and settings, and its records as columns."""
    sent = list(accumulate(record["up_bytes"] for record in records))
    shown = evaluated(records)
    return {
        "name": run.name,
        "variant": name_of(run.label),
        "label": dict(run.label),
        "seed": run.experiment.seed,
        "commit": manifest["commit"],
        "settings": {
            "lr": run.experiment.training.lr,
            **{k: v for k, v in run.experiment.algorithm.items() if k != "name"},
        },
        "up_bytes_a_client": records[0]["up_bytes"] // records[0]["clients"],
        "down_bytes_a_client": records[0]["down_bytes"] // (records[0]["clients"] + records[0]["rejected"]),
        "rejected": sum(record["rejected"] for record in records),
        "wall_s": round(sum(record["wall_s"] for record in records), 1),
        "round": [records[i]["round"] for i in shown],
        "score": [score(records[i]) for i in shown],
        "test_loss": [records[i]["test_loss"] for i in shown],
        "train_loss": [records[i]["train_loss"] for i in shown],
        "sent_bytes": [sent[i] for i in shown],
        "diagnostics": [{"round": r["round"], **r["diagnostics"]} for r in records if r.get("diagnostics")],
    }


def distinct(words: Iterable[str | None]) -> str | None:
    """Return the distinct words, joined with `and`; None if there are none."""
    return " and ".join(dict.fromkeys(word for word in words if word is not None)) or None


def final(result: RunResult) -> float | None:
    """Return the score after the last round, None if it is not a number."""
    return result["score"][-1]


def not_a_number(records: Sequence[RecordDict]) -> str | None:
    """Return an error text if the last score is not a number, else None."""
    return f"{label(main(records))} is not a number after the last round" if score(records[-1]) is None else None


def summary(group: Sequence[RunResult], target: float | None) -> Summary:
    """Summarise one variant over its seeds."""
    finals = [final(result) for result in group]
    first, mean = group[0], _mean_of_all(finals)
    mean_curve = [_mean_of_all(values) for values in zip(*(r["score"] for r in group), strict=True)]
    reached = next((i for i, a in enumerate(mean_curve) if target is not None and a is not None and a >= target), None)
    return {
        "variant": first["variant"],
        "label": first["label"],
        "settings": first["settings"],
        "seeds": len(group),
        "score": mean,
        "score_sd": None if mean is None or len(finals) == 1 else statistics.stdev(f for f in finals if f is not None),
        "train_loss": _mean([r["train_loss"][-1] for r in group]),
        "rounds_to_target": None if reached is None else first["round"][reached],
        "bytes_to_target": None if reached is None else first["sent_bytes"][reached],
        "up_bytes_a_client": first["up_bytes_a_client"],
        "wall_s": statistics.mean(r["wall_s"] for r in group),
    }


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean, None if any value is not a number: a mean of the others would mislead."""
    return None if any(value is None for value in values) else _mean(values)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are numbers, None without any."""
    found = [value for value in values if value is not None]
    return statistics.mean(found) if found else None


def settings_by_path(experiments: Iterable[Mapping[str, Any]]) -> dict[str, tuple[bool, Any]]:
    """Return settings by path: (False, the value) if all runs agree, else (True, the values).

    They also differ if only some runs have the setting.
    """
    values: dict[str, list[Any]] = {}
    count = 0
    for count, experiment in enumerate(experiments, start=1):  # noqa: B007  (how many there were)
        for path, value in flatten_settings(experiment):
            values.setdefault(path, []).append(value)
    found: dict[str, tuple[bool, Any]] = {}
    for path, all_ in values.items():
        distinct = [value for i, value in enumerate(all_) if value not in all_[:i]]
        common = len(distinct) == 1 and len(all_) == count
        found[path] = (not common, distinct[0] if common else distinct)
    return found


def name_of(label: Mapping[str, str]) -> str:
    """Return a variant in words: `fedadamw, alpha 0.5`; labels that differ have names that differ."""
    named = ("algorithm", "part")
    rest = {path: value for path, value in label.items() if path not in named}
    short = [path.rpartition(".")[2] for path in rest]
    unique = len(set(short)) == len(short)
    first = [value for path, value in label.items() if path in named]
    parts = first + [f"{s if unique else path} {rest[path]}" for s, path in zip(short, rest, strict=True)]
    return escape_text(", ".join(parts))


def write(results: Results, path: Path) -> None:
    """Write the results as JSON, atomically; numbers that are not finite become null."""
    text = json.dumps(replace_nan(results, digits=6), indent=1, allow_nan=False)
    write_atomically(path, (_compact(text) + "\n").encode())


def markdown(results: Results) -> str:
    """Return the summary as a Markdown table, best first."""
    head = headings(results)
    lines = [f"| {' | '.join(head)} |", "| --- | " + " | ".join(["---:"] * (len(head) - 1)) + " |"]
    for row in rows(results):
        lines.append(f"| {' | '.join(map(escape_markdown, row))} |")
    for missing in results["missing"]:
        said = f"{missing['variant']}, seed {missing['seed']}: {missing['error']}"
        lines.append(f"\n{escape_markdown(said)}")
    return "\n".join(lines) + "\n"


def headings(results: Results) -> list[str]:
    """Return the headings of `rows`."""
    return [name for name, _ in columns(results)]


def rows(results: Results) -> list[list[str]]:
    """Return the cells of the summary's table as text, best first, scores that are not numbers last."""
    ranked = sorted(results["summary"], key=lambda s: inf if s["score"] is None else -s["score"])
    return [[cell(summary)[1] for _, cell in columns(results)] for summary in ranked]


def _compact(text: str) -> str:
    """Put each list of numbers on one line."""
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", text)
