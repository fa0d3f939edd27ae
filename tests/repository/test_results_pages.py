"""docs/results.md, its pictures and the README's numbers match the committed records; drawn pictures their scripts."""

import pytest
from support.checkout import ROOT

from benchmarks.pages import instruct, lora_means, personal, summary
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
        {"variant": name, "seed": 0, "round": [1, 2], "score": scores}
        for name, scores in (("fedadamw", [-0.02, 0.15]), ("local-adamw", [0.0, 0.1]))
    ]
    summary = [{"variant": run["variant"], "score": run["score"][-1], "score_interval": None} for run in runs]
    results = {"metric": "matthews", "summary": summary, "runs": runs}
    against = results_page.FedAdamWAgainst.of(results)
    assert "reaches Local AdamW's final Matthews, and ends 5.0 points above it" in against.in_words()
    line = "| cola | Matthews | 15.0 % | 10.0 % | +5.0 | too few seeds | 2 of 2 (100%) | 1 of 2 | fedadamw, 15.0 % |"
    assert line in results_page.overview({"cola": results})


def test_the_readme_tells_the_numbers_of_the_records():
    scores = {name: {s["variant"]: 100 * s["score"] for s in found["summary"]} for name, found in STUDIES.items()}
    vit, longer = scores["small-cifar10-vit-dir0.1"], scores["small-cifar10-vit-dir0.1-240-rounds"]
    parts, resnet = scores["small-cifar10-vit-dir0.1-parts"], scores["small-cifar10-resnet-dir0.1"]
    easy, hard = scores["small-glue-sst2-dir0.8"], scores["small-glue-sst2-dir0.1"]
    claims = [
        f"ends {vit['fedadamw'] - vit['local-adamw']:.1f} points above Local AdamW",
        f"it is {longer['fedadamw'] - longer['local-adamw']:.1f} points",
        f"FedMuon is {vit['fedmuon'] - vit['fedadamw']:.1f} points ahead",
        f"alignment adds {parts['without shared v'] - parts['without shared v and alignment']:.1f} points",
        f"SCAFFOLD is {resnet['scaffold'] - resnet['fedadamw']:.1f} points",
        f"{easy['fedadamw']:.1f} against Local AdamW's {easy['local-adamw']:.1f} at Dirichlet 0.8",
        f"{hard['fedadamw']:.1f} against {hard['local-adamw']:.1f} at 0.1",
    ]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert [claim for claim in claims if claim not in text] == []
    assert sorted(vit, key=vit.get)[-3:] == ["fedadamw", "fedlion", "fedmuon"]
    assert set(sorted(resnet, key=resnet.get)[-3:]) == {"scaffold", "fedavg", "fedcm"}


def test_the_readmes_figure_shows_the_records():
    picture = summary.PICTURE.read_text()
    for panel in summary.PANELS:
        for row in summary.rows(STUDIES[panel.study]):
            assert f"{row['variant']}<" in picture
            assert panel.limits[0] <= row.get("low", row["score"]) <= row.get("high", row["score"]) <= panel.limits[1]


def test_the_picture_of_a_round_is_the_one_that_its_script_draws():
    pytest.importorskip("ziamath", reason="the extra docs is not installed")
    from benchmarks.pages import one_round

    assert one_round.draw() == one_round.PICTURE.read_text(), "run python -m benchmarks.pages.one_round"


def test_the_means_of_adapters_are_compared_by_pairs_of_seeds():
    runs = [
        {
            "aggregate": aggregate,
            "concentration": 0.1,
            "seed": seed,
            "round": [1, 40],
            "score": [0.5, base + more + 0.01 * seed],
            "up_bytes_a_client": 1e6 * share,
            "down_bytes_a_client": 2e6 * share,
        }
        for seed, base in enumerate((0.6, 0.7, 0.8))
        for aggregate, more, share in (("factors", 0, 1), ("alternate", 0.02, 0.5))
    ]
    record = {
        "recipe": "small/x",
        "clients_per_round": 10,
        "rounds": 40,
        "steps": 5,
        "batch_size": 8,
        "device": "cpu",
        "runs": runs,
    }
    text = lora_means.describe(record)
    assert "| `factors` | 71.0 ± 27.3 | - | 1.00 | 2.00 |" in text
    assert "| `alternate` | 73.0 ± 27.3 | +2.0 (+2.0 to +2.0) | 0.50 | 1.00 |" in text
    assert "3 seeds" in text


def test_answers_are_compared_by_split_beside_the_untuned_model():
    results = {"untuned": {"exact-match": 0.01}}
    for algorithm, more in (("fedadamw", 0.1), ("fedavg", 0.0)):
        for split in ("Dirichlet 0.1", "Dirichlet 0.8"):
            runs = [{"exact-match": score + more, "up_bytes": 16e6} for score in (0.5, 0.6, 0.7)]
            results[f"{algorithm}, {split}"] = {"lr": 0.001, "runs": runs}
    training = {"rounds": 5, "clients_per_round": 8, "steps": 5, "batch_size": 4}
    text = instruct.describe({"device": "cpu", "settings": {"training": training}, "results": results})
    assert "| | Dirichlet 0.1 | lr | Dirichlet 0.8 | lr | MB up, a client and round |" in text
    assert "| fedadamw | 70.0 ± 24.8 | 0.001 | 70.0 ± 24.8 | 0.001 | 2.00 |" in text
    assert "| the model before it was tuned | 1.0 | - | 1.0 | - | - |" in text


def test_personal_models_are_compared_by_seed():
    def run(score, tuned):
        kept = {key: [0.1, score] for key in ("clients_mean", "clients_worst_decile")}
        return {"error": None, "rounds": 10, "round": [5, 10], **kept, "tuned": {"clients_mean": tuned}}

    variants = {
        "global": {"lr": 0.003, "runs": [run(score, 0.9) for score in (0.5, 0.6)]},
        "personal head": {"lr": 0.001, "runs": [run(score, 0.8) for score in (0.6, 0.7)]},
    }
    paired = {"n": 2, "difference": 10.0, "low": 9.0, "high": 11.0, "effect": 1.0}
    workload = {"title": "ViT", "variants": variants, "paired": paired}
    text = personal.describe({"device": "cpu", "held_out": 0.2, "finetune": 10, "workloads": {"vit": workload}})
    assert "| ViT | global | 0.003 | 55.0 ± 63.5 | 55.0 ± 63.5 | 90.0 ± 0.0 | - | 2 | - |" in text
    assert "|  | personal head | 0.001 | 65.0 ± 63.5 | 65.0 ± 63.5 | 80.0 ± 0.0 | +10.0 (+9.0 to +11.0) | 2 |" in text
