"""The tables of a study: each variant's scores and costs, and the paired tests, as text and Markdown."""

from collections.abc import Callable, Sequence
from math import inf
from typing import Literal

from fedadamw.io.escaping import escape_markdown
from fedadamw.report.comparisons import comparison_headings, comparison_rows, describe_intervals, describe_tests
from fedadamw.report.metrics import begin_sentence, label, name_score
from fedadamw.report.study_files import Interval, Results, Summary
from fedadamw.report.study_scores import by_score, study_score
from fedadamw.report.study_time import (
    at_equal_time,
    choose_levels,
    describe_reach,
    has_virtual_time,
    reach_headings,
    reach_rows,
)
from fedadamw.report.virtual_time import format_virtual

Cell = Callable[[Summary], tuple[float | None, str]]  # the value that a column is sorted by, and its text
Column = Literal["train_loss", "rounds_to_target", "bytes_to_target", "up_bytes_a_client", "wall_s"]


def table_columns(results: Results) -> list[tuple[str, Cell]]:
    """Return the headings of the table, each with the cell of a summary."""
    goal = "target" if results["target"] is None else f"{results['target']:.1%}"

    def number(key: Column, form: Callable[[float], str], none: str = "-") -> Cell:
        return lambda s: (value := s[key], none if value is None else form(value))

    losses = number("train_loss", lambda v: f"{v:.3f}")
    return [
        ("variant", lambda s: (None, s["variant"])),
        ("lr", lambda s: (s["settings"]["lr"], f"{s['settings']['lr']:g}")),
        (score_name(results), lambda s: (s["score"], format_score(s))),
        *time_columns(results),
        *client_columns(results),
        *privacy_columns(results),
        *([("training loss", losses)] if any(s["train_loss"] is not None for s in results["summary"]) else []),
        (f"rounds to {goal}", number("rounds_to_target", lambda v: f"{v:,}", "not reached")),
        (f"MB to {goal}", number("bytes_to_target", lambda v: f"{v / 1e6:,.0f}", "not reached")),
        ("MB a client and round", number("up_bytes_a_client", lambda v: f"{v / 1e6:.3f}")),
        ("time", number("wall_s", lambda v: f"{v:,.0f} s")),
    ]


def time_columns(results: Results) -> list[tuple[str, Cell]]:
    """Return the columns of virtual time with their headings; none if not all runs have a clock.

    They are the score at the time when the first run ended, and the whole run's time.
    """
    if not has_virtual_time(results):
        return []
    budget, then = at_equal_time(results)
    none = (None, "not all evaluated")  # a seed of the variant had no evaluation by then
    means = {s["variant"]: none if s["score"] is None else (s["score"], format_score(s)) for s in then["summary"]}
    whole: Cell = lambda s: (s.get("virtual_s"), format_virtual(s.get("virtual_s", 0.0)))  # noqa: E731
    return [(f"at {format_virtual(budget)}", lambda s: means[s["variant"]]), ("virtual time", whole)]


def privacy_columns(results: Results) -> list[tuple[str, Cell]]:
    """Return the column of epsilons with its heading; none if no run has differential privacy."""
    if not any("epsilon" in s for s in results["summary"]):
        return []

    def spent(summary: Summary) -> tuple[float | None, str]:
        epsilon = summary.get("epsilon")
        return epsilon, "none" if "epsilon" not in summary else "infinite" if epsilon is None else f"{epsilon:.3g}"

    return [("epsilon", spent)]


def client_columns(results: Results) -> list[tuple[str, Cell]]:
    """Return the columns of the clients' scores, with their headings; none if no run has them."""
    if not any("clients_mean" in s for s in results["summary"]):
        return []
    columns: list[tuple[str, Cell]] = [
        ("mean of clients", lambda s: _percent(s.get("clients_mean"), s.get("clients_mean_interval"))),
        ("std over clients", lambda s: _percent(s.get("clients_std"), None)),
        (
            "worst tenth of clients",
            lambda s: _percent(s.get("clients_worst_decile"), s.get("clients_worst_decile_interval")),
        ),
    ]
    if any("clients_tuned" in s for s in results["summary"]):
        tuned: Cell = lambda s: _percent(s.get("clients_tuned"), s.get("clients_tuned_interval"))  # noqa: E731
        columns.append(("mean of clients, tuned", tuned))
    return columns[1:] if study_score(results) == "clients_mean" else columns


def _percent(value: float | None, interval: Interval | None) -> tuple[float | None, str]:
    return value, format_mean(value, interval)


def format_score(summary: Summary) -> str:
    """Format the mean score in percent with its 95% interval."""
    return format_mean(summary["score"], summary["score_interval"])


def format_mean(mean: float | None, interval: Interval | None) -> str:
    """Format a mean in percent with its 95% interval: ± half of Student's, both ends of a bootstrap's."""
    if mean is None:
        return "-"
    if interval is None:
        return f"{100 * mean:.1f} %"
    if interval["method"] == "t":
        return f"{100 * mean:.1f} ± {50 * (interval['high'] - interval['low']):.1f} %"
    return f"{100 * mean:.1f} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f}) %"


def score_label(results: Results) -> str:
    """Return the name of the study's metric."""
    return label(results["metric"] or "score")


def score_name(results: Results) -> str:
    """Return what the study is ordered by, as it is written in a sentence: `test accuracy`."""
    return name_score(results["metric"] or "score", study_score(results))


def table_headings(results: Results) -> list[str]:
    """Return the headings of `table_rows`."""
    return [name for name, _ in table_columns(results)]


def table_rows(results: Results) -> list[list[str]]:
    """Return the summary as text cells, best variant first; those without a score are last."""
    return [[cell(summary)[1] for _, cell in table_columns(results)] for summary in ranked(results)]


def ranked(results: Results) -> list[Summary]:
    """Return the summaries, best variant first; those without a score are last."""
    return sorted(results["summary"], key=lambda s: inf if s["score"] is None else -s["score"])


def to_markdown(results: Results) -> str:
    """Return the summary as a Markdown table, best variant first; below it paired tests and missing runs."""
    parts = [_markdown_table(table_headings(results), table_rows(results))]
    parts.append(f"Scores: {describe_intervals(results)}\n")
    for title, tested in paired_tests(results):
        parts += [f"{title}:\n"] if title else []
        parts.append(_markdown_table(comparison_headings(tested), comparison_rows(tested)))
        parts.append(f"{describe_tests(tested)}\n")
    if has_virtual_time(results) and choose_levels(results):
        parts.append(_markdown_table(reach_headings(results), reach_rows(results)))
        parts.append(f"{describe_reach(results)}\n")
    for missing in results["missing"]:
        text = f"{missing['variant']}, seed {missing['seed']}: {missing['error']}"
        parts.append(f"{escape_markdown(text)}\n")
    return "\n".join(parts)


def paired_tests(results: Results) -> list[tuple[str, Results]]:
    """Return the study as its paired tests are of: by its score and, with a title, by others.

    They are the score at the virtual time when the first run ended, and the mean of clients.
    """
    found = [("", results)] if results["comparisons"] else []
    if has_virtual_time(results):
        budget, then = at_equal_time(results)
        title = f"{begin_sentence(score_name(then))} at {format_virtual(budget)} of virtual time"
        found += [(title, then)] if then["comparisons"] else []
    if results.get("client_comparisons"):
        of_clients = by_score(results, "clients_mean")
        found.append((begin_sentence(score_name(of_clients)), of_clients))
    return found


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        f"| {' | '.join(map(escape_markdown, head))} |",
        "| --- | " + " | ".join(["---:"] * (len(head) - 1)) + " |",
    ]
    lines += [f"| {' | '.join(map(escape_markdown, row))} |" for row in rows]
    return "\n".join(lines) + "\n"
