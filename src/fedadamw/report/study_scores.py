"""A study seen by another score than its own: the mean of the clients' scores, or that of the worst tenth of them."""

from collections.abc import Sequence
from typing import cast

from fedadamw.report.comparisons import compare_with_best, score_interval
from fedadamw.report.metrics import Score
from fedadamw.report.study_files import ClientColumn, Comparison, Results, RunResult, Summary


def study_score(results: Results) -> Score:
    """Return what the study is ordered by; older results have test scores."""
    return results.get("score", "test")


def has_clients(results: Results) -> bool:
    """Whether any run has scores of its clients."""
    return any("clients" in run for run in results["runs"])


def by_score(results: Results, of: ClientColumn) -> Results:
    """Return the study with `of` in place of its score, without the variants that have no scores of clients."""
    runs, summary = of_clients(results["runs"], results["summary"], of)
    stored = results.get("client_comparisons") if of == "clients_mean" else None
    comparisons = compare_with_best(runs, summary) if stored is None else stored
    return cast(Results, {**results, "score": of, "runs": runs, "summary": summary, "comparisons": comparisons})


def compare_clients(runs: Sequence[RunResult], summary: Sequence[Summary]) -> list[Comparison]:
    """Compare the variant with the highest mean of clients with each other one, as compare_with_best does."""
    return compare_with_best(*of_clients(runs, summary, "clients_mean"))


def of_clients(
    runs: Sequence[RunResult], summary: Sequence[Summary], of: ClientColumn
) -> tuple[list[RunResult], list[Summary]]:
    """Return the runs with scores of clients, and their variants, with the column `of` of these as their score."""
    changed = [_with_score(run, of) for run in runs if "clients" in run]
    finals: dict[str, list[float | None]] = {}
    for run in changed:
        finals.setdefault(run["variant"], []).append(run["score"][-1])
    summaries = [_with_mean(each, finals[each["variant"]]) for each in summary if each["variant"] in finals]
    return changed, summaries


def _with_score(run: RunResult, of: ClientColumn) -> RunResult:
    columns = run["clients"]
    places = {name: dict(columns)[name] for name in ("round", "sent_bytes", "virtual_s") if name in columns}
    return cast(RunResult, {**run, **places, "score": columns[of]})


def _with_mean(summary: Summary, finals: Sequence[float | None]) -> Summary:
    numbers = [value for value in finals if value is not None]
    mean = sum(numbers) / len(numbers) if len(numbers) == len(finals) else None
    return cast(Summary, {**summary, "score": mean, "score_interval": score_interval(finals)})
