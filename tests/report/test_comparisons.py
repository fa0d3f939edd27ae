"""The best variant against each other one: who is compared, what is corrected, and what is said."""

import pytest

from fedadamw.report.comparisons import (
    compare_with_best,
    comparison_headings,
    comparison_rows,
    describe_comparison,
    describe_intervals,
    describe_tests,
    is_best,
)

FINALS = {
    "a": {0: 0.80, 1: 0.82, 2: 0.81},
    "b": {0: 0.79, 1: 0.83, 2: 0.78},  # differences 0.01, -0.01, 0.03
    "c": {0: 0.40, 1: 0.43, 2: 0.41},
}


def study(finals=FINALS) -> dict:
    runs = [{"variant": name, "seed": s, "score": [0.1, x]} for name, of in finals.items() for s, x in of.items()]
    summary = [
        {"variant": name, "seeds": len(of), "score": None if None in of.values() else sum(of.values()) / len(of)}
        for name, of in finals.items()
    ]
    return {"runs": runs, "summary": summary, "comparisons": compare_with_best(runs, summary)}


def test_the_best_is_compared_with_each_other_by_seed():
    of_b, of_c = study()["comparisons"]
    assert (of_b["best"], of_b["variant"], of_c["variant"]) == ("a", "b", "c")
    assert of_b["difference"] == pytest.approx(0.01)
    assert (of_b["p_holm"], of_c["p_holm"]) == (pytest.approx(of_b["p"]), pytest.approx(2 * of_c["p"]))
    assert describe_comparison(of_c) == "3 seeds tell these apart"
    assert describe_comparison(of_b) == "3 seeds cannot tell these apart; about 34 would", "an effect of a half"


def test_a_best_variant_is_better_only_if_each_other_one_is_told_apart():
    assert [is_best(study(), name) for name in "abc"] == [False, False, False]
    without_b = study({name: FINALS[name] for name in "ac"})
    assert [is_best(without_b, name) for name in "ac"] == [True, False]


def test_the_best_mean_of_luckier_seeds_is_not_called_better():
    lucky = study({"few": {2: 0.90, 3: 0.91, 4: 0.92}, "all": {0: 0.3, 1: 0.3, 2: 0.95, 3: 0.962, 4: 0.971}})
    (pair,) = lucky["comparisons"]
    assert (pair["best"], pair["difference"] < 0, pair["p"] < 0.05) == ("few", True, True)
    assert not is_best(lucky, "few")


def test_only_seeds_of_both_are_compared_and_a_seed_without_a_score_is_not():
    found = study({"a": FINALS["a"], "c": {1: 0.43, 2: 0.41, 3: 0.9}, "d": {0: 0.1, 1: None}})["comparisons"]
    assert [(c["variant"], c["seeds"]) for c in found] == [("c", 2)]
    assert study({"a": {0: 0.5}, "b": {1: 0.4}})["comparisons"] == [], "no seed in common"


def test_what_one_seed_and_equal_differences_say():
    (one,) = study({"a": {0: 0.5}, "b": {0: 0.4}})["comparisons"]
    assert (one["interval"], one["p_holm"]) == (None, None)
    assert describe_comparison(one) == "one seed cannot tell; use three or more"
    (same,) = study({"a": {0: 0.5, 1: 0.6}, "b": {0: 0.4, 1: 0.5}})["comparisons"]
    assert describe_comparison(same) == "the difference is the same with all 2 seeds: no test"
    assert "paired by seed; no tests." in describe_tests({"comparisons": [one]})
    assert "Holm's correction over 1." in describe_tests({"comparisons": [same, study()["comparisons"][0]]})


def test_a_difference_lost_to_the_correction_is_called_that():
    found = dict(study()["comparisons"][0], p=0.03, p_holm=0.09, seeds_needed=3)
    assert describe_comparison(found) == "3 seeds cannot tell these apart after the correction"


def test_the_table_says_which_tests_and_intervals_it_has():
    few = study()
    assert comparison_headings(few)[0] == "a against"
    assert comparison_rows(few)[0][:2] == ["b", "+1.0 (-4.0 to 6.0)"], "in points"
    assert "paired t-tests, with Holm's correction over 2" in describe_tests(few)
    assert "95% intervals of its mean (Student t)" in describe_tests(few)
    noise = {seed: 0.5 + 0.01 * (seed % 4) for seed in range(12)}
    many = study({"a": {seed: x + 0.02 * (seed % 3) for seed, x in noise.items()}, "b": noise})
    assert "Wilcoxon p" in comparison_headings(many)
    assert len(comparison_rows(many)[0]) == len(comparison_headings(many))
    assert "(bootstrap)" in describe_tests(many)


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([1, 1], "One seed: no intervals."),
        ([3, 3], "95% intervals of the mean (Student t) over 3 seeds."),
        ([2, 12], "95% intervals of the mean (Student t, from 10 seeds on bootstrap) over 2 to 12 seeds."),
        ([10], "95% intervals of the mean (bootstrap) over 10 seeds."),
    ],
)
def test_intervals_are_named(seeds, text):
    assert describe_intervals({"summary": [{"seeds": count} for count in seeds]}) == text
