"""A study's tables in LaTeX (booktabs); the best variant is bold only where paired tests say that it is better."""

import re
from collections.abc import Sequence

from fedadamw.io.escaping import escape_text
from fedadamw.report.comparisons import (
    comparison_headings,
    comparison_rows,
    describe_intervals,
    describe_tests,
    is_best,
)
from fedadamw.report.study_files import Results, Summary
from fedadamw.report.study_table import client_columns, ranked, score_name, table_columns

COLUMNS = (
    "mean of",
    "std over",
    "worst tenth",
    "epsilon",
    "training loss",
    "rounds to",
    "MB a client",
)  # begin headings
FIRST = 3  # columns before them: variant, lr and the score
SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", **{c: f"\\{c}" for c in "{}$&#_%"},
}  # fmt: skip


def escape_latex(text: object) -> str:
    """Escape `text` for LaTeX."""
    return re.sub(r"[\\~^<>|±{}$&#_%]", lambda match: SPECIAL[match.group()], escape_text(text))


def scores_table(results: Results) -> str:
    """Return each variant's score and costs, best first."""
    all_columns = table_columns(results)
    columns = all_columns[:FIRST] + [pair for pair in all_columns[FIRST:] if pair[0].startswith(COLUMNS)]
    in_percent = {score_name(results), *(name for name, _ in client_columns(results))}
    rows = []
    for summary in ranked(results):
        bold = is_best(results, summary["variant"])
        cells = [escape_latex(cell(summary)[1].removesuffix(" %")) for _, cell in columns]
        cells[2] = format_score(summary, bold=bold)
        rows.append([rf"\textbf{{{cells[0]}}}" if bold else cells[0], *cells[1:]])
    head = [escape_latex(name) + (r" (\%)" if name in in_percent else "") for name, _ in columns]
    caption = f"{results['recipe']}: final {score_name(results)}. {describe_intervals(results)}"
    if results["comparisons"]:
        caption += " Bold: better than each other variant by paired t-tests over seeds (p < 0.05, Holm's correction)."
    return make_table(head, rows, escape_latex(caption), "scores")


def tests_table(results: Results, name: str) -> str:
    """Return the paired tests of the best variant against each other one; `name` is the table's in LaTeX."""
    head = list(map(escape_latex, comparison_headings(results)))
    rows = [list(map(escape_latex, row)) for row in comparison_rows(results)]
    return make_table([*head[:-1], "seeds"], rows, escape_latex(describe_tests(results)), name, last="l")


def format_score(summary: Summary, *, bold: bool) -> str:
    """Format the mean score in percent with its 95% interval."""
    mean, interval = summary["score"], summary["score_interval"]
    if mean is None:
        return "--"
    text = f"{100 * mean:.1f}"
    if interval is not None and interval["method"] == "t":
        text += rf" \pm {50 * (interval['high'] - interval['low']):.1f}"
    elif interval is not None:
        text += rf"\;[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str, *, last: str = "r") -> str:
    """Return a table of LaTeX cells; the first column is aligned left, the last as `last`."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{tab:{label}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(head) - 2)}{last}}}",
        r"    \toprule",
        f"    {' & '.join(head)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
