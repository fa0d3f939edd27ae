"""The table of docs/results.md that compares algorithms on questions and answers, from measure/instruct."""

from collections.abc import Mapping
from statistics import mean
from typing import Any

from benchmarks.common.records import read_newest
from fedadamw.report.intervals import mean_interval

METRIC, UNTUNED = "exact-match", "untuned"


def section() -> str:
    """Return the section of the page; empty until the record is there."""
    record = read_newest("instruct", "cpu")
    return "" if record is None else describe(record)


def describe(record: Mapping[str, Any]) -> str:
    """Return title, introduction and table of a record."""
    compared = {tuple(name.split(", ")): result for name, result in record["results"].items() if name != UNTUNED}
    splits = list(dict.fromkeys(split for _, split in compared))
    lines = ["## A language model that answers questions on SST-2\n", _introduce(record, compared)]
    lines.append(f"| | {' | '.join(f'{split} | lr' for split in splits)} | MB up, a client and round |")
    lines.append(f"| --- |{' ---: |' * (2 * len(splits) + 1)}")
    for name in dict.fromkeys(name for name, _ in compared):
        found = [compared[name, split] for split in splits]
        cells = [cell for result in found for cell in (_show(result["runs"]), f"{result['lr']:g}")]
        lines.append(f"| {name} | {' | '.join(cells)} | {_megabytes_up(record, found[0]):.2f} |")
    untuned = f"{100 * record['results'][UNTUNED][METRIC]:.1f}"
    lines.append(f"| the model before it was tuned |{f' {untuned} | - |' * len(splits)} - |")
    return "\n".join(lines) + "\n"


def _introduce(record: Mapping[str, Any], compared: Mapping[tuple[str, ...], Any]) -> str:
    training = record["settings"]["training"]
    seeds = len(next(iter(compared.values()))["runs"])
    length = f"{training['rounds']} rounds of {training['clients_per_round']} clients with {training['steps']} steps"
    return (
        f"Recipe `small/instruct-smollm2`: SmolLM2-135M-Instruct with LoRA in float32, {length} of "
        f"{training['batch_size']} texts, {seeds} seeds ({record['device']}): answers to held-out questions that match "
        "exactly, in percent, ± half of the 95% interval of the mean. Each algorithm has a learning rate of its own "
        "at each split, chosen with another seed on questions held out of the training set, from a grid that grew "
        "while its best was at an end. Three seeds are too few to tell algorithms apart: these are numbers, not a "
        "ranking. Written by `python -m benchmarks.measure.instruct`.\n"
    )


def _show(runs: list[Mapping[str, Any]]) -> str:
    scores = [100 * run[METRIC] for run in runs]
    interval = mean_interval(scores)
    return f"{mean(scores):.1f}" + ("" if interval is None else f" ± {(interval.high - interval.low) / 2:.1f}")


def _megabytes_up(record: Mapping[str, Any], result: Mapping[str, Any]) -> float:
    clients = record["settings"]["training"]["clients_per_round"]
    return float(mean(run["up_bytes"] for run in result["runs"]) / clients / 1e6)
