"""Variants of several settings together: what is run, how it is named, and what is refused."""

import pytest

from fedadamw.study.plan import parse_variants, plan
from fedadamw.study.results import variant_name
from fedadamw.validation import InputError

TEXTS = ["waiting:", "deadline: federation.deadline_s=20 federation.over_selection=0.3"]
TEXTS.append("buffered: training.aggregation=buffered training.rounds=9 'devices.classes={a: {share: 1}}'")
CLOCK = ("devices.speed.kind", "log-normal")


def test_each_variant_is_run_with_its_settings_in_place_of_the_others(tmp_path):
    overrides = [("training.rounds", 4), ("training.lr", [0.1, 0.2]), CLOCK]
    runs = plan("digits", ["fedadamw", "fedavg"], [0], overrides, tmp_path, None, parse_variants(TEXTS))
    assert len(runs) == 2 * 3 * 2
    assert [variant_name(run.label) for run in runs[:3]] == [
        "fedadamw, waiting, lr 0.1",
        "fedadamw, waiting, lr 0.2",
        "fedadamw, deadline, lr 0.1",
    ]
    rounds = {run.label["part"]: run.experiment.training.rounds for run in runs}
    assert rounds == {"waiting": 4, "deadline": 4, "buffered": 9}
    deadlines = {run.label["part"]: run.experiment.federation.deadline_s for run in runs}
    assert deadlines == {"waiting": 600.0, "deadline": 20.0, "buffered": 600.0}
    assert {run.experiment.training.aggregation for run in runs if run.label["part"] == "buffered"} == {"buffered"}


def test_a_study_without_variants_has_the_names_it_had(tmp_path):
    (run,) = plan("digits", ["fedadamw"], [0], [("training.rounds", 4)], tmp_path)
    assert run.label == {"algorithm": "fedadamw"}


@pytest.mark.parametrize(
    ("texts", "overrides", "message"),
    [
        (["buffered"], [], "give a name, a colon and settings"),
        ([": training.lr=1"], [], "give a name, a colon and settings"),
        (["a: 'training.lr=1"], [], "No closing quotation"),
        (["a:", "a: training.lr=1"], [], "--variant a: is given twice"),
        (["a: training.lr=1 training.lr=2"], [], "-s training.lr: is given twice"),
        (["a: seed=3"], [], "-s seed: a comparison takes it from --seeds"),
        (["a:", "b: training.lr=1"], [("training.lr", [1, 2])], "the variant b sets it too"),
        (["a:", "b:"], [], "two runs are the same: algorithm=fedadamw part=a and algorithm=fedadamw part=b, seed 0"),
    ],
)
def test_wrong_variants_are_refused_in_one_line(tmp_path, texts, overrides, message):
    with pytest.raises(InputError, match=message) as raised:
        plan("digits", ["fedadamw"], [0], overrides, tmp_path, None, parse_variants(texts))
    assert "\n" not in str(raised.value)
