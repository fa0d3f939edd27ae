"""Studies whose runs have a virtual clock: curves, scores at equal time and times to a score, and older studies."""

import pytest

from fedadamw.report.intervals import mean_interval
from fedadamw.report.study_charts import all_charts
from fedadamw.report.study_page import render
from fedadamw.report.study_table import paired_tests, table_headings, table_rows, to_markdown
from fedadamw.report.study_time import at_equal_time, reach_headings, reach_rows, score_at, time_rows, time_to
from fedadamw.study.results import summarize


def run(variant: str, seed: int, seconds: list[float], scores: list[float]) -> dict:
    count = len(scores)
    found = {"name": f"{variant}-{seed}", "variant": variant, "label": {"algorithm": "a", "part": variant}}
    found |= {"seed": seed, "commit": None, "settings": {"lr": 0.1}, "up_bytes_a_client": 5, "down_bytes_a_client": 5}
    found |= {"rejected": 0, "wall_s": 1.0, "round": [*range(1, count + 1)], "score": scores, "diagnostics": []}
    found |= {"test_loss": [1.0] * count, "train_loss": [1.0] * count, "sent_bytes": [*range(count)]}
    return {**found, "virtual_s": seconds}


def study(*groups: list[dict], target: float | None = 0.6) -> dict:
    found = {"format": 3, "recipe": "digits", "device": "cpu", "metric": "accuracy", "target": target, "missing": []}
    found |= {"score": "test", "settings": {}, "whose": {}, "comparisons": []}
    return {
        **found,
        "runs": [one for group in groups for one in group],
        "summary": [summarize(group, target) for group in groups],
    }


FAST = [run("fast", 0, [100, 200, 300], [0.2, 0.6, 0.7]), run("fast", 1, [150, 250, 350], [0.4, 0.5, 0.7])]
SLOW = [run("slow", 0, [200, 400, 600], [0.3, 0.5, 0.8]), run("slow", 1, [290, 500, 800], [0.5, 0.55, 0.58])]


@pytest.fixture
def timed() -> dict:
    return study(FAST, SLOW)


def test_a_score_holds_from_its_evaluation_to_the_next():
    assert [score_at(FAST[0], t) for t in (99, 100, 199.9, 200, 1000)] == [None, 0.2, 0.2, 0.6, 0.7]
    assert (time_to(FAST[0], 0.6), time_to(SLOW[1], 0.6)) == (200, None)


def test_curves_begin_when_all_seeds_have_a_score_and_end_with_the_first_that_ends(timed):
    rows = [row for row in time_rows(timed) if row["variant"] == "fast" and "seed" not in row]
    assert [rows[0]["virtual"], rows[-1]["virtual"]] == [150 / 60, 300 / 60], "minutes, of 800 seconds"
    assert rows[0]["score"] == pytest.approx(0.3), "0.2 since 100 s, 0.4 since 150 s"
    at_200 = next(row for row in rows if row["virtual"] == pytest.approx(200 / 60, abs=1e-6))
    assert at_200["score"] == pytest.approx(0.5)
    assert at_200["low"] == pytest.approx(max(mean_interval([0.6, 0.4]).low, 0.0))
    assert "virtual" in all_charts(timed)


def test_variants_are_compared_when_the_first_run_ends(timed):
    budget, then = at_equal_time(timed)
    assert budget == 300
    assert [s["score"] for s in then["summary"]] == [pytest.approx((0.7 + 0.5) / 2), pytest.approx((0.3 + 0.5) / 2)]
    assert then["comparisons"][0]["difference"] == pytest.approx(((0.7 - 0.3) + (0.5 - 0.5)) / 2)
    place = table_headings(timed).index("at 5 min")
    assert {row[0]: row[place].split()[0] for row in table_rows(timed)} == {"fast": "60.0", "slow": "40.0"}
    assert [title for title, _ in paired_tests(timed)] == ["Test accuracy at 5 min of virtual time"]
    late = study(FAST, [run("slow", 0, [500], [0.9]), SLOW[1]])
    assert at_equal_time(late)[1]["summary"][1]["score"] is None, "a seed that had no score yet"
    place = table_headings(late).index("at 5 min")
    assert next(row[place] for row in table_rows(late) if row[0] == "slow") == "not all evaluated"


def test_times_to_a_score_are_means_of_the_seeds_that_all_reached_it(timed):
    assert reach_headings(timed) == ["virtual minutes to", "30%", "48%", "54%", "60%"]
    fast, slow = reach_rows(timed)
    half = (mean_interval([200.0, 350.0]).high - 275.0) / 60
    assert fast == ["fast", "2.92 ± 5.3", "3.75 ± 5.3", "4.58 ± 16", f"4.58 ± {half:.2g}"]
    assert slow[0] == "slow"
    assert slow[-1] == "1 of 2 seeds"
    quick = next(s for s in timed["summary"] if s["variant"] == "fast")
    assert (quick["virtual_s_to_target"], quick["virtual_s"]) == (275, 325)
    assert timed["summary"][1]["virtual_s_to_target"] is None
    assert "| virtual minutes to | 30% |" in to_markdown(timed)
    assert "<h2>Virtual time to a score</h2>" in render(timed, "study")


def test_a_study_without_clocks_is_as_before(timed):
    for one in timed["runs"]:
        del one["virtual_s"]
    plain = study(*([one for one in timed["runs"] if one["variant"] == name] for name in ("fast", "slow")))
    assert "virtual" not in all_charts(plain)
    assert "virtual" not in to_markdown(plain)
    assert "<h2>Virtual time" not in render(plain, "study")
