"""Results of a study: what is summed up, whose a setting is, and files of earlier formats."""

import json
import shutil

import pytest
from support.checkout import ROOT

from fedadamw.study import results
from fedadamw.validation import InputError

OF_FORMAT_2 = ROOT / "benchmarks" / "results" / "small-cifar10-vit-dir0.6_cpu_202611.json"


def test_settings_of_only_some_runs_are_not_common():
    found = results.compare_settings([{"a": 1, "b": {"c": 2}}, {"a": 1}])
    assert found == {"a": (False, 1), "b.c": (True, [2])}


def test_settings_that_differ_name_the_variants_that_have_each_value():
    runs = [("a", {"lr": 1, "seed": s, "b": 0}) for s in (0, 1)] + [("c", {"lr": 2, "seed": s}) for s in (0, 1)]
    assert results.find_owners(runs) == {
        "lr": [{"value": 1, "variants": ["a"]}, {"value": 2, "variants": ["c"]}],
        "b": [{"value": 0, "variants": ["a"]}],
    }, "seeds are the same for both"


def test_rounds_and_bytes_to_a_target_are_those_of_the_mean_curve():
    def result(scores):
        return {
            "variant": "a",
            "label": {"algorithm": "a"},
            "settings": {"lr": 0.1},
            "score": scores,
            "round": [2, 4, 6],
            "sent_bytes": [10, 20, 30],
            "train_loss": [3.0, 2.0, 1.0],
            "wall_s": 1.0,
            "up_bytes_a_client": 5,
        }

    group = [result([0.1, 0.3, 0.4]), result([0.2, 0.4, 0.6])]
    found = results.summarize(group, 0.35)
    assert (found["rounds_to_target"], found["bytes_to_target"]) == (4, 20)
    assert results.summarize(group, 0.9)["rounds_to_target"] is None


def test_results_of_an_earlier_format_are_read_with_intervals_and_tests(tmp_path):
    before = json.loads(OF_FORMAT_2.read_text())
    assert before["format"] == 2, "as it was written"
    path = tmp_path / "results.json"
    shutil.copy(OF_FORMAT_2, path)
    found = results.read_results(path)
    assert (found["runs"], found["whose"]) == (before["runs"], {})
    assert len(found["comparisons"]) == len(found["summary"]) - 1
    interval = found["summary"][0]["score_interval"]
    half = 4.302653 * before["summary"][0]["score_sd"] / 3**0.5  # Student's t of two degrees of freedom
    assert (interval["high"] - interval["low"]) / 2 == pytest.approx(half, rel=1e-3)
    results.write_results(found, path)
    again = results.read_results(path)
    assert again["format"] == 3
    assert again["comparisons"][0]["p"] == pytest.approx(found["comparisons"][0]["p"], rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"), [('{"format": 99}', "format 2 to 3"), ("{", "cannot be read"), ("[]", "is not a results.json")]
)
def test_another_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        results.read_results(path)
    assert "\n" not in str(raised.value)
