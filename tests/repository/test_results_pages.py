"""docs/results.md says what the committed records say."""

import json

from support.checkout import ROOT

from benchmarks.pages import results as results_page

FOUND = {name: json.loads(path.read_text()) for name, path in results_page.studies().items()}


def test_the_page_is_made_of_the_committed_records():
    said = "run python -m benchmarks.pages.results"
    assert results_page.page(FOUND) == (ROOT / "docs" / "results.md").read_text(), said


def test_every_study_has_its_picture():
    missing = [name for name in FOUND if not (results_page.PICTURES / f"{name}.svg").exists()]
    assert missing == []


def test_a_gap_is_told_in_hundredths_of_the_score_by_its_name():
    runs = [
        {"variant": name, "round": [1, 2], "score": scores}
        for name, scores in (("fedadamw", [-0.02, 0.15]), ("local-adamw", [0.0, 0.1]))
    ]
    summary = [{"variant": run["variant"], "score": run["score"][-1], "score_sd": None} for run in runs]
    results = {"metric": "matthews", "summary": summary, "runs": runs}
    against = results_page.FedAdamWAgainst.of(results)
    assert "reaches Local AdamW's final Matthews, and ends 5.0 points above it" in against.in_words()
    line = "| cola | Matthews | 15.0 % | 10.0 % | +5.0 | 2 of 2 (100%) | 1 of 2 | fedadamw, 15.0 % |"
    assert line in results_page.overview({"cola": results})
