"""docs/results.md and its pictures match the committed records."""

from support.checkout import ROOT

from benchmarks.pages import results as results_page
from fedadamw.study.results import read_results

STUDIES = {name: read_results(path) for name, path in results_page.studies().items()}


def test_the_page_is_generated_from_the_committed_records():
    hint = "run python -m benchmarks.pages.results"
    assert results_page.page(STUDIES) == (ROOT / "docs" / "results.md").read_text(), hint


def test_every_study_has_a_picture():
    missing = [name for name in STUDIES if not (results_page.PICTURES / f"{name}.svg").exists()]
    assert missing == []


def test_a_gap_is_given_in_hundredths_of_the_score_and_names_the_metric():
    runs = [
        {"variant": name, "round": [1, 2], "score": scores}
        for name, scores in (("fedadamw", [-0.02, 0.15]), ("local-adamw", [0.0, 0.1]))
    ]
    summary = [{"variant": run["variant"], "score": run["score"][-1], "score_interval": None} for run in runs]
    results = {"metric": "matthews", "summary": summary, "runs": runs}
    against = results_page.FedAdamWAgainst.of(results)
    assert "reaches Local AdamW's final Matthews, and ends 5.0 points above it" in against.in_words()
    line = "| cola | Matthews | 15.0 % | 10.0 % | +5.0 | 2 of 2 (100%) | 1 of 2 | fedadamw, 15.0 % |"
    assert line in results_page.overview({"cola": results})
