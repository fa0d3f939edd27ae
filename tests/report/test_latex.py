"""Tables in LaTeX: outside text cannot break them, and bold means better."""

import pytest

from fedadamw.report.comparisons import compare_with_best, score_interval
from fedadamw.report.latex import escape_latex, scores_table


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 5 %", r"a\_b \& 5 \%"),
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("x^2 ~ $y$ #1 <z|", r"x\textasciicircum{}2 \textasciitilde{} \$y\$ \#1 \textless{}z\textbar{}"),
        ("1 ± 2", r"1 $\pm$ 2"),
        ("two\nlines", r"two\textbackslash{}nlines"),
    ],
)
def test_special_characters_are_escaped(text, escaped):
    assert escape_latex(text) == escaped


def study(*finals: list[float]) -> dict:
    runs = [{"variant": f"v_{i}", "seed": s, "score": [x]} for i, of in enumerate(finals) for s, x in enumerate(of)]
    summary = [
        {
            "variant": f"v_{i}",
            "settings": {"lr": 0.1},
            "seeds": len(of),
            "score": sum(of) / len(of),
            "score_interval": score_interval(of),
            "train_loss": 1.0,
            "rounds_to_target": None,
            "up_bytes_a_client": 10**6,
        }
        for i, of in enumerate(finals)
    ]
    comparisons = compare_with_best(runs, summary)
    facts = {"recipe": "digits", "metric": "f1", "target": 0.5, "runs": []}
    return {**facts, "summary": summary, "comparisons": comparisons}


def test_the_best_is_bold_only_if_the_tests_say_that_it_is_better():
    better = scores_table(study([0.50, 0.51, 0.52], [0.80, 0.81, 0.83]))
    assert r"\textbf{v\_1} & 0.1 & $\mathbf{81.3 \pm 3.8}$" in better
    near = scores_table(study([0.50, 0.55, 0.52], [0.51, 0.54, 0.53]))
    assert "mathbf" not in near
    assert "textbf" not in near
    assert "mathbf" not in scores_table(study([0.5], [0.9])), "one seed shows nothing"


def test_a_bootstraps_interval_has_both_ends():
    text = scores_table(study([0.5 + 0.01 * (i % 5) for i in range(10)]))
    assert r"$52.0\;[" in text
    assert "(bootstrap) over 10 seeds" in text
    assert "test F1" in text
