"""The page of a study in a real browser: no error on its console, charts drawn, a table that sorts, on phones too."""

from pathlib import Path

import numpy as np
import pytest

from fedadamw.report import run_charts, study_charts, study_rows
from fedadamw.report.run_page import write_run_page
from fedadamw.report.study_page import write_study_page
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.study.results import add_statistics, variant_name


def result(variant: str, seed: int, offset: float) -> dict:
    rounds = [5, 10, 15, 20]
    diagnostics = [
        {
            "round": r,
            "drift": 1.0 / r + offset,
            "cosine": None if r == 5 else 0.1 * r / 20,
            "update_norm": 2.0,
            "update_norm_by_kind": {"query": 1.0, "mlp": 0.5},
            "v_variance": 1e-6 * (1 + offset),
            "v_dispersion": 2.0,
            "v_variance_by_kind": {"query": 1e-6, "mlp": 3e-7},
        }
        for r in rounds
    ]
    return {
        "variant": variant,
        "label": {"algorithm": variant},
        "seed": seed,
        "settings": {"lr": 0.001},
        "round": rounds,
        "score": [0.1 + 0.02 * i + offset + 0.01 * seed for i in range(4)],
        "train_loss": [2.0 - 0.1 * i for i in range(4)],
        "test_loss": [2.1 - 0.1 * i for i in range(4)],
        "sent_bytes": [10**6 * (i + 1) for i in range(4)],
        "diagnostics": diagnostics,
    }


def summary(variant: str, score: float, reached: int | None, lr: float) -> dict:
    return {
        "variant": variant,
        "label": {"algorithm": variant},
        "settings": {"lr": lr},
        "seeds": 2,
        "score": score,
        "score_sd": 0.01,
        "train_loss": 1.7,
        "rounds_to_target": reached,
        "bytes_to_target": None if reached is None else reached * 10**6,
        "up_bytes_a_client": 10**6,
        "wall_s": 60.0,
    }


OF_FORMAT_2 = {
    "format": 2,
    "recipe": "small/<&>",
    "device": "cpu",
    "metric": "accuracy",
    "target": 0.2,
    "settings": {"training.lr": (True, [0.001, 0.1]), "training.rounds": (False, 20)},
    "summary": [
        summary("fedavg", 0.20, 20, 0.1),
        summary("fedadamw", 0.31, 9, 0.001),
        summary("local-adamw", 0.25, None, 0.003),
    ],
    "runs": [result(v, s, o) for v, o in (("fedavg", 0.0), ("fedadamw", 0.1), ("local-adamw", 0.05)) for s in (0, 1)],
    "missing": [{"variant": "scaffold", "seed": 1, "error": "failed: <b>it</b>"}],
}
RESULTS = add_statistics(OF_FORMAT_2)


def opened(chromium, path: Path, width: int):
    """The page as a browser of this width shows it, without a network, and what its console said."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.charts svg.marks').length >= 8", timeout=30_000)
    return page, said


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_study_page(RESULTS, folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_every_chart_is_drawn_without_console_errors(chromium, written, width):
    page, said = opened(chromium, written, width)
    assert said == []
    drawn = page.eval_on_selector_all(
        ".charts svg.marks",
        "all => all.map(s => [s.clientWidth, s.querySelectorAll('path').length, s.textContent.length])",
    )
    assert len(drawn) == len(study_charts.all_charts(RESULTS))
    assert all(paths > 10 and text > 20 for _, paths, text in drawn), "lines, bands and words"
    assert all(0.6 * min(width, 560) < wide < width for wide, _, _ in drawn), "as wide as there is room"
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert overflow <= 0, "no sideways scrolling"


def column(page, number: int) -> list[str]:
    return page.eval_on_selector_all(
        f".results tbody td:nth-child({number})", "cells => cells.map(c => c.textContent.trim())"
    )


def test_the_table_sorts_by_numbers_with_what_was_not_reached_last(chromium, written):
    page, _ = opened(chromium, written, 1280)
    assert column(page, 1) == ["fedadamw", "local-adamw", "fedavg"], "best accuracy first"
    heads = page.locator(".results th button")
    heads.nth(4).click()
    assert column(page, 5) == ["9", "20", "not reached"]
    heads.nth(4).click()
    assert column(page, 5) == ["20", "9", "not reached"]
    heads.nth(1).click()
    assert column(page, 2) == ["0.001", "0.003", "0.1"]
    heads.nth(0).click()
    assert column(page, 1) == ["fedadamw", "fedavg", "local-adamw"]


def test_hovering_shows_values_and_a_click_in_the_legend_picks_a_line(chromium, written):
    page, said = opened(chromium, written, 1280)
    points = page.locator("#score svg .mark-symbol.role-mark path")
    points.nth(points.count() - 1).hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    text = page.locator("#vg-tooltip-element").inner_text()
    assert "test accuracy" in text
    before = page.locator("#score").inner_html()
    page.locator("#score svg .role-legend-label text").first.click()
    page.wait_for_timeout(300)
    assert page.locator("#score").inner_html() != before, "the others fade"
    assert said == []


def test_outside_text_is_escaped(chromium, written):
    page, _ = opened(chromium, written, 1280)
    assert "small/<&>" in page.locator("main > p").first.inner_text()
    assert "scaffold, seed 1: failed: <b>it</b>" in page.locator(".warning").inner_text()


HOSTILE = (
    "<!--<script>",
    "</script><script>window.hostile = 1</script>",
    "<img src=x onerror='window.hostile = 1'>",
    "\x1b[31m \x00 \u2028 \u202e \ud800 \ufffe",
    "`|*[x](javascript:hostile)\n---\n# not a title",
    "' \" \\ ${hostile} datum['x'] [/x] [bold]",
)


def drawn(chromium, path: Path, count: int):
    """The page, once its charts are drawn; that nothing in it ran or went wrong."""
    page = chromium.new_context(offline=True).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function(f"document.querySelectorAll('canvas, svg.marks').length >= {count}", timeout=30_000)
    assert [line for line in said if "favicon" not in line] == []
    assert page.evaluate("window.hostile") is None
    assert page.evaluate("document.querySelectorAll('script').length") == 2, "those of the template"
    assert page.evaluate("document.querySelectorAll('img, h1 *').length") == 0
    return page


def test_hostile_names_of_classes_folders_and_settings_are_words_on_a_runs_page(chromium, tmp_path):
    from support.studies import MANIFEST, rounds

    folder = RunFolder(tmp_path / "<!--<script><img src=x onerror='hostile=1'>")
    experiment = load("digits", ["data.label_column=<!--<script>"])
    folder.start(experiment, {**MANIFEST, "data": {"classes": HOSTILE}})
    for record in rounds():
        folder.append(record)
    settings, counts = experiment.model_dump(mode="json"), np.ones((3, len(HOSTILE)), int)
    write_run_page(folder.path, folder.records(), settings, folder.read_manifest(), counts, HOSTILE)
    shown = drawn(chromium, folder.path / "report.html", 3)
    assert shown.locator("h1").inner_text() == folder.path.name
    assert "<!--<script>" in shown.locator("#partition").inner_html().replace("&lt;", "<").replace("&gt;", ">")
    assert "window.hostile = 1" in shown.locator("main").inner_text()


def test_hostile_names_of_recipes_and_variants_are_words_on_a_studys_page(chromium, tmp_path):
    names = dict(
        zip(("fedavg", "fedadamw", "local-adamw"), (variant_name({"algorithm": h}) for h in HOSTILE[:4]), strict=False)
    )
    hostile = {
        **RESULTS,
        "recipe": HOSTILE[0],
        "settings": {HOSTILE[1]: (True, list(HOSTILE)), "data.source": (False, HOSTILE[3])},
        "summary": [dict(s, variant=names[s["variant"]]) for s in RESULTS["summary"]],
        "runs": [dict(r, variant=names[r["variant"]]) for r in RESULTS["runs"]],
        "comparisons": [dict(c, best=HOSTILE[2], variant=HOSTILE[1]) for c in RESULTS["comparisons"]],
        "whose": {HOSTILE[1]: [{"value": HOSTILE[2], "variants": list(HOSTILE)}]},
        "missing": [{"variant": HOSTILE[4], "seed": 1, "error": HOSTILE[0]}],
    }
    write_study_page(hostile, tmp_path)
    shown = drawn(chromium, tmp_path / "report.html", len(study_charts.all_charts(hostile)))
    assert column(shown, 1) == [names["fedadamw"], names["local-adamw"], names["fedavg"]]
    assert "<!--<script>" in shown.locator("main > p").first.inner_text()


def test_the_page_of_a_single_run_draws_offline(chromium, tmp_path, run_main):
    settings = ("-s", "training.rounds=2", "-s", "training.steps=1", "-s", "training.diagnostics=true")
    assert run_main("run", "digits", *settings, "--out", str(tmp_path / "run"), "-q").returncode == 0
    context = chromium.new_context(viewport={"width": 390, "height": 900}, offline=True)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "run" / "report.html").as_uri())
    page.wait_for_function("document.querySelectorAll('canvas, svg.marks').length >= 4", timeout=30_000)
    assert [line for line in said if "favicon" not in line] == []


def test_a_single_varying_setting_gets_a_chart():
    varied = {
        **RESULTS,
        "summary": [
            dict(s, label={"algorithm": "a", "algorithm.alpha": v})
            for s, v in zip(RESULTS["summary"], ("0", "0.5", "1"), strict=True)
        ],
    }
    assert study_charts.varied_setting(varied) == "algorithm.alpha"
    assert "value" in study_charts.all_charts(varied)
    assert study_charts.varied_setting(RESULTS) is None


@pytest.mark.parametrize(("metric", "low"), [("f1", 0.0), ("matthews", -1.0)])
def test_a_band_ends_where_the_metric_does(metric, low):
    of_seed = ([0.0, 0.8], [0.8, 1.0])  # with two seeds, Student's interval is 12.7 standard errors either side
    runs = [dict(RESULTS["runs"][seed], round=[5, 10], score=of_seed[seed]) for seed in (0, 1)]
    rows = study_rows.curve_rows({**RESULTS, "metric": metric, "runs": runs}, "score")
    assert [row.get("seed") for row in rows] == [None, 0, 1, None, 0, 1], "the mean and each seed"
    assert (rows[0]["low"], rows[3]["high"]) == (low, 1.0)
    half = 12.706205 * 0.4
    hovered = f"{0.4 - half:.2%} to {0.4 + half:.2%} (Student t, 2 seeds)"
    assert rows[0]["interval"] == hovered, "what is hovered is the whole interval"


def test_where_a_seed_was_not_finite_there_is_no_mean_of_the_others():
    of_seed = ([0.5, None], [0.6, 0.7])
    runs = [dict(RESULTS["runs"][seed], round=[5, 10], score=of_seed[seed]) for seed in (0, 1)]
    rows = study_rows.curve_rows({**RESULTS, "runs": runs}, "score")
    assert [(row["round"], row.get("seed"), row["score"]) for row in rows] == [
        (5, None, 0.55),
        (5, 0, 0.5),
        (5, 1, 0.6),
        (10, 1, 0.7),
    ]


def test_one_seed_has_no_band():
    rows = study_rows.curve_rows({**RESULTS, "runs": RESULTS["runs"][:1]}, "score")
    assert all(row.keys() == {"variant", "round", "sent", "score"} for row in rows)


def test_an_axis_is_as_high_as_the_values_and_not_as_wide_bands():
    rows = [{"y": 0.4, "low": 0.0, "high": 0.41}, {"y": 0.5, "low": 0.45, "high": 1.0}]
    assert study_rows.value_domain(rows, "y", (0.0, 1.0)) == (pytest.approx(0.37), pytest.approx(0.53))
    assert study_rows.value_domain(rows, "y", (0.38, 0.52)) == (0.38, 0.52), "nor past the metric's ends"
    assert study_rows.value_domain(rows[:1], "y", (0.0, 1.0)) is None, "one value has no height"


@pytest.mark.parametrize(("rounds", "values"), [([1, 2, 3], [1, 2, 3]), ([2, 4], [2, 3, 4]), ([7], [7])])
def test_few_rounds_are_whole_numbers(rounds, values):
    assert run_charts.rounds_axis(rounds).to_dict() == {"format": "d", "values": values}
    assert run_charts.rounds_axis([1, 9]).to_dict()["tickMinStep"] == 1


def test_the_byte_axis_is_logarithmic_if_variants_differ_widely():
    def axis(factor):
        runs = [
            dict(r, sent_bytes=[n * (factor if r["variant"] == "fedavg" else 1) for n in r["sent_bytes"]])
            for r in RESULTS["runs"]
        ]
        spec = study_charts.curve_chart({**RESULTS, "runs": runs}, "score", by="sent").to_dict()
        return spec["layer"][0]["encoding"]["x"]["scale"]["type"]

    assert (axis(2), axis(10)) == ("linear", "log")
    by_round = study_charts.curve_chart(RESULTS, "score", by="round").to_dict()
    x = by_round["layer"][0]["encoding"]["x"]
    assert (x["scale"].get("type"), x["axis"]["tickMinStep"]) == (None, 1), "rounds are whole numbers"


def test_likelihoods_are_means_over_rounds_below_the_best_memory():
    first, second = {"all": {"0+": 1.0, "inf": 3.0}}, {"all": {"0+": 2.0, "inf": 1.0}, "head": {"0+": 5.0, "inf": 1.0}}
    records = [{}, {"diagnostics": {"drift": 1.0}}, *({"diagnostics": {"likelihood": own}} for own in (first, second))]
    table = run_charts.likelihood_table(records)
    assert table == {"all": {"0+": 0.5, "inf": 0.0}, "head": {"0+": 0.0, "inf": 4.0}}
    assert run_charts.likelihood_table(records[:2]) == {}
    assert len(run_charts.likelihood_chart(table).to_dict()["layer"]) == 2
