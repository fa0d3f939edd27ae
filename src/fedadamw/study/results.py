"""What the runs of a study came to: one JSON object that tables, charts and pages are made of."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.metrics import main, score
from fedadamw.report.charts import Result, Results, variants
from fedadamw.report.comparison import columns
from fedadamw.study.plan import Run
from fedadamw.study.workers import Ended

FORMAT = 2


def collect(recipe: str, runs: Sequence[Run], ended: Iterable[Ended] = (), target: float | None = None) -> Results:
    """The records of all runs that are done, why the others are not, and a summary of each variant over its seeds.

    target: the score that `rounds and bytes to` are counted to; by default the median of the variants' final ones.
    """
    errors = {end.run.name: end.error for end in ended if end.error}
    found, manifests, metrics = [], [], []
    for run in runs:
        if run.done:
            try:
                manifest, records = run.folder.read_manifest(), run.folder.records()
                found.append(result_of(run, manifest, records))
                manifests.append(manifest)
                metrics.append(main(records))
            except CheckpointError as error:
                errors[run.name] = str(error)
    groups = list(variants(found).values())
    there = {result["name"] for result in found}
    if target is None and groups:
        target = statistics.median(statistics.mean(final(r) for r in group) for group in groups)
    return {
        "format": FORMAT,
        "recipe": recipe,
        "commit": distinct(manifest["commit"] for manifest in manifests),
        "device": distinct(manifest["device"] for manifest in manifests),
        "versions": {
            package: distinct(manifest["versions"].get(package) for manifest in manifests)
            for package in (manifests[0]["versions"] if manifests else ())
        },
        "metric": distinct(metrics),
        "target": None if target is None else round(target, 4),
        "settings": settings_by_path(run.experiment.model_dump(mode="json") for run in runs),
        "summary": [summary(group, target) for group in groups],
        "runs": found,
        "missing": [
            {"variant": name_of(r.label), "seed": r.experiment.seed, "error": errors.get(r.name, "not run")}
            for r in runs
            if r.name not in there
        ],
    }


def result_of(run: Run, manifest: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Result:
    """One run: its label, seed, own settings, and its records as columns."""
    sent = list(accumulate(record["up_bytes"] for record in records))
    shown = [i for i, record in enumerate(records) if score(record) is not None]
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
    """The words, each once, with `and` between them where runs differ; None where there are none."""
    return " and ".join(dict.fromkeys(word for word in words if word is not None)) or None


def final(result: Result) -> float:
    """The score after the last round."""
    return float(result["score"][-1])


def summary(group: Sequence[Result], target: float | None) -> dict[str, Any]:
    """One variant over its seeds."""
    finals = [final(result) for result in group]
    first = group[0]
    mean_curve = [statistics.mean(values) for values in zip(*(r["score"] for r in group), strict=True)]
    reached = next((i for i, a in enumerate(mean_curve) if target is not None and a >= target), None)
    return {
        "variant": first["variant"],
        "label": first["label"],
        "settings": first["settings"],
        "seeds": len(group),
        "score": statistics.mean(finals),
        "score_sd": statistics.stdev(finals) if len(finals) > 1 else None,
        "train_loss": _mean([r["train_loss"][-1] for r in group]),
        "rounds_to_target": None if reached is None else first["round"][reached],
        "bytes_to_target": None if reached is None else first["sent_bytes"][reached],
        "up_bytes_a_client": first["up_bytes_a_client"],
        "wall_s": statistics.mean(r["wall_s"] for r in group),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are numbers."""
    found = [value for value in values if value is not None]
    return statistics.mean(found) if found else None


def settings_by_path(experiments: Iterable[Mapping[str, Any]]) -> dict[str, tuple[bool, Any]]:
    """Settings by path: (False, the value) where all runs agree, (True, the values) where they differ, which is also
    where only some have the setting.
    """
    values: dict[str, list[Any]] = {}
    count = 0
    for count, experiment in enumerate(experiments, start=1):  # noqa: B007  (how many there were)
        for path, value in _flat(experiment):
            values.setdefault(path, []).append(value)
    found: dict[str, tuple[bool, Any]] = {}
    for path, all_ in values.items():
        distinct = [value for i, value in enumerate(all_) if value not in all_[:i]]
        common = len(distinct) == 1 and len(all_) == count
        found[path] = (not common, distinct[0] if common else distinct)
    return found


def name_of(label: Mapping[str, str]) -> str:
    """A variant in words: `fedadamw, alpha 0.5`; labels that differ have names that differ."""
    named = ("algorithm", "part")
    rest = {path: value for path, value in label.items() if path not in named}
    short = [path.rpartition(".")[2] for path in rest]
    unique = len(set(short)) == len(short)
    first = [value for path, value in label.items() if path in named]
    return ", ".join(first + [f"{s if unique else path} {rest[path]}" for s, path in zip(short, rest, strict=True)])


def write(results: Results, path: Path) -> None:
    """The results as JSON, atomically; a number that is none is null."""
    text = json.dumps(_finite(results), indent=1, allow_nan=False)
    write_atomically(path, (_compact(text) + "\n").encode())


def markdown(results: Results) -> str:
    """The summary as a Markdown table, best first."""
    head = headings(results)
    lines = [f"| {' | '.join(head)} |", "| --- | " + " | ".join(["---:"] * (len(head) - 1)) + " |"]
    for row in rows(results):
        cells = [cell.replace("|", r"\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    for missing in results["missing"]:
        lines.append(f"\n{missing['variant']}, seed {missing['seed']}: {missing['error']}")
    return "\n".join(lines) + "\n"


def headings(results: Results) -> list[str]:
    """The headings of `rows`."""
    return [name for name, _ in columns(results)]


def rows(results: Results) -> list[list[str]]:
    """The summary as words, best first: the cells of `markdown`."""
    ranked = sorted(results["summary"], key=lambda s: -s["score"])
    return [[cell(summary)[1] for _, cell in columns(results)] for summary in ranked]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _finite(value: Any) -> Any:
    """The same, with None for numbers that JSON does not have, and six digits of the others."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def _compact(text: str) -> str:
    """Lists of numbers on one line each."""
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", text)
