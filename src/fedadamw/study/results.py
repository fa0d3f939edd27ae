"""results.json of a study: the finished runs, a summary of each variant, tests between them, and the missing runs."""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, cast

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.io.escaping import escape_text
from fedadamw.io.json_values import replace_nan
from fedadamw.report.comparisons import compare_with_best, score_interval
from fedadamw.report.metrics import Score, epsilon_of, find_evaluations, label, main_metric, score
from fedadamw.report.run_files import Manifest, RecordDict
from fedadamw.report.study_files import Missing, Owners, Results, RunResult, Summary
from fedadamw.report.study_rows import align, runs_by_variant
from fedadamw.report.study_scores import compare_clients, has_clients
from fedadamw.report.study_time import time_to
from fedadamw.report.virtual_time import has_clock
from fedadamw.settings.section import flatten_settings
from fedadamw.study.client_columns import add_clients, client_columns, mean_if_all
from fedadamw.study.plan import Run
from fedadamw.study.workers import EndedRun
from fedadamw.validation import InputError, check

FORMAT = 3


def collect_results(
    recipe: str, runs: Sequence[Run], ended: Iterable[EndedRun] = (), target: float | None = None
) -> Results:
    """Return the results of all finished runs, why the others are missing, and a summary of each variant.

    A run whose final score is not finite is in both `runs` and `missing`. The score is the mean of the clients' scores
    if a run has no test score, as with personal parameters: runs without that mean are then missing.
    target: the score for rounds_to_target and bytes_to_target; by default the median of the variants' final scores.
    """
    errors = {end.run.name: end.error for end in ended if end.error}
    finished, file_errors = _read_finished(runs)
    of = choose_score([each.records for each in finished])
    scored = [each for each in finished if find_evaluations(each.records, of)]
    results = [run_result(*each, of) for each in scored]
    manifests, metrics = [each.manifest for each in scored], [main_metric(each.records, of) for each in scored]
    errors |= file_errors | _find_errors(finished, of)
    groups = list(runs_by_variant(results).values())
    target = _median_score(groups) if target is None else target
    summary = [summarize(group, target) for group in groups]
    found: Results = {
        "format": FORMAT,
        "recipe": recipe,
        "commit": join_distinct(manifest["commit"] for manifest in manifests),
        "device": join_distinct(manifest["device"] for manifest in manifests),
        "versions": {
            package: join_distinct(manifest["versions"].get(package) for manifest in manifests)
            for package in dict.fromkeys(name for manifest in manifests for name in manifest["versions"])
        },
        "metric": join_distinct(metrics),
        "target": None if target is None else round(target, 4),
        "settings": compare_settings(run.experiment.model_dump(mode="json") for run in runs),
        "whose": find_owners((variant_name(run.label), run.experiment.model_dump(mode="json")) for run in runs),
        "summary": summary,
        "comparisons": compare_with_best(results, summary),
        "runs": results,
        "missing": _missing_runs(runs, results, errors),
        "score": of,
    }
    if of == "test" and has_clients(found):
        found["client_comparisons"] = compare_clients(results, summary)
    return found


class Finished(NamedTuple):
    """What a finished run left."""

    run: Run
    manifest: Manifest
    records: list[RecordDict]


def _read_finished(runs: Sequence[Run]) -> tuple[list[Finished], dict[str, str]]:
    """Return the finished runs, and errors in their files by run name."""
    finished, errors = [], {}
    for run in runs:
        if run.done:
            try:
                finished.append(Finished(run, run.folder.read_manifest(), run.folder.records()))
            except CheckpointError as error:
                errors[run.name] = str(error)
    return finished, errors


def choose_score(records: Iterable[Sequence[RecordDict]]) -> Score:
    """Return what runs with these records can be compared by: the test score, or the clients' mean if one has none."""
    return "test" if all(find_evaluations(each, "test") for each in records) else "clients_mean"


def _find_errors(finished: Iterable[Finished], of: Score) -> dict[str, str]:
    """Return why runs have no final score, by their names."""
    found = {each.run.name: describe_missing_score(each.records, of) for each in finished}
    return {name: error for name, error in found.items() if error is not None}


def run_result(run: Run, manifest: Manifest, records: Sequence[RecordDict], of: Score = "test") -> RunResult:
    """Return the results of one run by its score `of`."""
    sent = list(accumulate(record["up_bytes"] for record in records))
    evaluations, experiment = find_evaluations(records, of), run.experiment
    own_settings = {key: value for key, value in experiment.algorithm.items() if key != "name"}
    first = next((record for record in records if record["clients"]), records[0])  # a round may have no client
    found: RunResult = {
        "name": run.name,
        "variant": variant_name(run.label),
        "label": dict(run.label),
        "seed": experiment.seed,
        "commit": manifest["commit"],
        "settings": {"lr": experiment.training.lr, **own_settings},
        "up_bytes_a_client": first["up_bytes"] // max(first["clients"], 1),
        "down_bytes_a_client": first["down_bytes"] // max(first["clients"] + first["rejected"], 1),
        "rejected": sum(record["rejected"] for record in records),
        "wall_s": round(sum(record["wall_s"] for record in records), 1),
        "round": [records[i]["round"] for i in evaluations],
        "score": [score(records[i], of) for i in evaluations],
        "test_loss": [records[i]["test_loss"] for i in evaluations],
        "train_loss": [records[i]["train_loss"] for i in evaluations],
        "sent_bytes": [sent[i] for i in evaluations],
        "diagnostics": [{"round": r["round"], **r["diagnostics"]} for r in records if r.get("diagnostics")],
    }
    if has_clock(records):
        found["virtual_s"] = [records[i]["virtual_s"] for i in evaluations]
    if (epsilon := epsilon_of(records[-1])) is not None:
        found["epsilon"] = epsilon if isfinite(epsilon) else None
    if evaluated := find_evaluations(records, "clients_mean"):
        found["clients"] = client_columns([records[i] for i in evaluated], [sent[i] for i in evaluated])
    return found


def _missing_runs(runs: Sequence[Run], results: Sequence[RunResult], errors: Mapping[str, str]) -> list[Missing]:
    complete = {result["name"] for result in results if final_score(result) is not None}
    return [
        {"variant": variant_name(run.label), "seed": run.experiment.seed, "error": errors.get(run.name, "not run")}
        for run in runs
        if run.name not in complete
    ]


def _median_score(groups: Sequence[Sequence[RunResult]]) -> float | None:
    """Return the median of the variants' mean final scores, of those that have one."""
    means = [mean for group in groups if (mean := mean_if_all(map(final_score, group))) is not None]
    return statistics.median(means) if means else None


def join_distinct(texts: Iterable[str | None]) -> str | None:
    """Join the distinct texts with `and`; None if there are none."""
    return " and ".join(dict.fromkeys(text for text in texts if text is not None)) or None


def final_score(result: RunResult) -> float | None:
    """Return the score after the last round; None if it is not finite."""
    return result["score"][-1]


def describe_missing_score(records: Sequence[RecordDict], of: Score) -> str | None:
    """Return an error message if the final score is not finite, or if there is none."""
    if not find_evaluations(records, of) and of == "test":
        return "it has no test score"
    if not find_evaluations(records, of):
        return "it has no scores of its clients: set partition.held_out and training.client_evaluation"
    if score(records[-1], of) is None:
        return f"{label(main_metric(records, of))} is not a number after the last round"
    return None


def summarize(group: Sequence[RunResult], target: float | None) -> Summary:
    """Summarize the runs of one variant."""
    finals = list(map(final_score, group))
    first, mean = group[0], mean_if_all(finals)
    curve = {
        places[0]: mean_if_all(r["score"][i] for r, i in zip(group, places, strict=True)) for _, places in align(group)
    }
    reached = next((i for i, s in curve.items() if target is not None and s is not None and s >= target), None)
    found: Summary = {
        "variant": first["variant"],
        "label": first["label"],
        "settings": first["settings"],
        "seeds": len(group),
        "score": mean,
        "score_sd": None if mean is None or len(finals) == 1 else statistics.stdev(f for f in finals if f is not None),
        "score_interval": score_interval(finals),
        "train_loss": _mean([r["train_loss"][-1] for r in group]),
        "rounds_to_target": None if reached is None else first["round"][reached],
        "bytes_to_target": None if reached is None else first["sent_bytes"][reached],
        "up_bytes_a_client": first["up_bytes_a_client"],
        "wall_s": statistics.mean(r["wall_s"] for r in group),
    }
    if all("virtual_s" in r for r in group):
        times = [None if target is None else time_to(r, target) for r in group]
        found["virtual_s"] = statistics.mean(r["virtual_s"][-1] for r in group)
        found["virtual_s_to_target"], found["virtual_s_to_target_interval"] = mean_if_all(times), score_interval(times)
    if all("epsilon" in r for r in group):
        spent = [r["epsilon"] for r in group]
        found["epsilon"] = None if None in spent else max(e for e in spent if e is not None)
    columns = [r["clients"] for r in group if "clients" in r]
    return add_clients(found, columns) if len(columns) == len(group) else found


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    numbers = [value for value in values if value is not None]
    return statistics.mean(numbers) if numbers else None


def compare_settings(experiments: Iterable[Mapping[str, Any]]) -> dict[str, tuple[bool, Any]]:
    """Return settings by path: (False, the value) if all runs agree, else (True, the distinct values).

    A setting that only some of the runs have counts as different.
    """
    values: dict[str, list[Any]] = {}
    count = 0
    for count, experiment in enumerate(experiments, start=1):  # noqa: B007  (used after the loop)
        for path, value in flatten_settings(experiment):
            values.setdefault(path, []).append(value)
    settings: dict[str, tuple[bool, Any]] = {}
    for path, all_ in values.items():
        distinct = [value for i, value in enumerate(all_) if value not in all_[:i]]
        common = len(distinct) == 1 and len(all_) == count
        settings[path] = (not common, distinct[0] if common else distinct)
    return settings


def find_owners(experiments: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[Owners]]:
    """Return each setting in which variants differ: its values, and which variants have them.

    experiments: (variant, settings) of each run. A setting that only some variants have counts as different.
    """
    found: dict[str, list[Owners]] = {}
    variants: dict[str, None] = {}
    for variant, experiment in experiments:
        variants[variant] = None
        for path, value in flatten_settings(experiment):
            owners = found.setdefault(path, [])
            same = next((o for o in owners if o["value"] == value), None)
            if same is None:
                owners.append({"value": value, "variants": [variant]})
            elif variant not in same["variants"]:
                same["variants"].append(variant)
    everyone = len(variants)
    return {path: owners for path, owners in found.items() if any(len(o["variants"]) < everyone for o in owners)}


def variant_name(label: Mapping[str, str]) -> str:
    """Return the name of a variant, as `fedadamw, alpha 0.5`; different labels have different names."""
    named = ("algorithm", "part")
    rest = {path: value for path, value in label.items() if path not in named}
    short = [path.rpartition(".")[2] for path in rest]
    unique = len(set(short)) == len(short)
    first = [value for path, value in label.items() if path in named]
    parts = first + [f"{s if unique else path} {rest[path]}" for s, path in zip(short, rest, strict=True)]
    return escape_text(", ".join(parts))


def read_results(path: Path) -> Results:
    """Return the results in a file, of this format or an earlier one; raises InputError for any other file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as results of a study ({error})") from None
    known = isinstance(found, dict) and found.get("format") in range(2, FORMAT + 1)
    check(known, f"{path}: is not a results.json of format 2 to {FORMAT}; a newer fedadamw may read it")
    return add_statistics(found) if found["format"] < 3 else cast(Results, found)


def add_statistics(results: Mapping[str, Any]) -> Results:
    """Return results of format 2 with what format 3 added: intervals, comparisons and, unknown, whose a setting is."""
    groups = runs_by_variant(results["runs"])
    summary = [
        {**s, "score_interval": score_interval(final_score(run) for run in groups[s["variant"]])}
        for s in results["summary"]
    ]
    comparisons = compare_with_best(results["runs"], cast(list[Summary], summary))
    return cast(Results, {**results, "format": FORMAT, "whose": {}, "summary": summary, "comparisons": comparisons})


def write_results(results: Results, path: Path) -> None:
    """Write the results as JSON, atomically; numbers that are not finite become null."""
    text = json.dumps(replace_nan(results, digits=6), indent=1, allow_nan=False)
    write_atomically(path, (_join_list_lines(text) + "\n").encode())


def _join_list_lines(text: str) -> str:
    """Put each list of numbers on one line."""
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda m: "[" + " ".join(m.group(1).split()) + "]", text)
