"""docs/privacy.md says what the committed records and the program's checks say."""

import re
from pathlib import Path

import pytest

from benchmarks.pages import membership, privacy, private_curves
from fedadamw import prepare
from fedadamw.prepare.client_evaluation import check_client_evaluation
from fedadamw.prepare.privacy import check_privacy
from fedadamw.settings.data import DataSettings
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.load import load
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.personal import PersonalSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError

PAGE = privacy.PAGE.read_text()
TABLE = re.search(r"<!-- refused -->\n\n(.*?)\n\n<!-- end -->", PAGE, re.DOTALL)[1]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()[2:]]
TEXTS = ["data.source=./texts", "model.name=./model"]
BASES = {  # what a setting needs; by its name's beginning
    "data.packing": ["data.task=causal-lm", *TEXTS],
    "training.group_by_length": ["data.task=text", *TEXTS],
    "lora.": ["lora.r=4"],
}
SECTIONS = (DataSettings, FederationSettings, LoraSettings, PersonalSettings, TrainingSettings)
FIELDS = {section.__name__.removesuffix("Settings").lower(): section.model_fields for section in SECTIONS}
UNITS = ("sample", "client")


def settings_of(row):
    """The settings in the first cell of a row."""
    return re.findall(r"`([^`]+)`", row[0])


def experiment(settings, unit):
    """Digits, or what the first of the settings needs, with privacy and these settings."""
    setting = settings[0]
    base = next((own for start, own in BASES.items() if setting.startswith(start)), [])
    allowed = ["federation.norm_factor=null"] if unit == "client" else []
    length = ["training.steps=null"] if "epochs" in setting else []
    own = [s for s in allowed if s.split("=")[0] != setting.split("=")[0]]
    held_out = ["partition.held_out=0.2"] if "client_evaluation" in setting or "finetune" in setting else []
    return load(
        "digits", [*base, *own, *length, *held_out, f"privacy.unit={unit}", "privacy.noise_multiplier=1", *settings]
    )


def check_all(given, *, remote):
    """What a run checks before it loads anything."""
    check_privacy(given, remote=remote)
    check_client_evaluation(given, remote=remote)


def test_the_sections_are_written_from_the_committed_records():
    assert privacy.fill(PAGE) == PAGE, "run python -m benchmarks.pages.privacy"
    assert {part["name"] for part in privacy.PART.finditer(PAGE)} == set(privacy.SECTIONS)
    drawn = {path.stem for path in privacy.PICTURES.glob("*.svg")}
    assert drawn == set(private_curves.pictures()), "run python -m benchmarks.pages.privacy"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: settings_of(row)[0])
def test_every_setting_of_the_table_is_refused_with_the_units_that_it_names(row):
    settings = settings_of(row)
    for unit in UNITS:
        named, remote = unit in re.findall(r"\w+", row[1]), "over Flower" in row[1]
        given = experiment(settings, unit)
        if named:
            with pytest.raises(InputError, match=re.escape(settings[0].split("=")[0])):
                check_all(given, remote=remote)
        else:
            check_all(given, remote=False)


def test_every_setting_that_the_program_refuses_is_in_the_table():
    source = "".join(path.read_text() for path in Path(prepare.__file__).parent.glob("*privacy.py"))
    given = re.findall(r"\b(\w+)\.(\w+)", source)
    named = {f"{section}.{name}" for section, name in given if name in FIELDS.get(section, ())} | {"shards"}
    instead = {"training.steps", "training.batch_size", "data.mean", "data.std", "lora.r", "personal.parameters"}
    shown = {settings_of(row)[0].split("=")[0] for row in ROWS}
    assert named - instead == shown


def test_an_attack_is_told_beside_what_epsilon_allows():
    assert membership.most_auc(0.0) == 0.5
    assert membership.most_true_positives(1.0, 0.0, 0.01) == pytest.approx(0.0271828, abs=1e-6)
    assert membership.most_true_positives(8.0, 1e-5, 0.01) < 1
    kinds = {
        "epsilon 1": {"epsilon": 1.0, "accuracy": [0.8, 0.82], "auc": [0.51, 0.53], "true_positives": [0.01, 0.012]}
    }
    record = {"delta": 1e-5, "false_positives": 0.01, "kinds": kinds, "training": {"steps": 1, "batch_size": 2}}
    record |= {"clients": 4, "rounds": 2, "clip": 1.0, "width": 8, "samples": 10, "device": "cpu"}
    assert "| samples, epsilon 1 | 81.0 ± 12.7 | 52.0 ± 12.7 | 88.1 | 1.1 ± 1.3 | 7.4 |" in membership.describe(record)


def test_curves_are_compared_by_seed():
    def cell(algorithm, epsilon, scores):
        runs = [{"seed": 10 + n, "score": score, "error": None} for n, score in enumerate(scores)]
        return {"algorithm": algorithm, "epsilon": epsilon, "lr": 0.01, "clip": epsilon and 0.3, "runs": runs}

    cells = [cell(name, e, [80.0, 82.0]) for e in (None, 3.0) for name in ("fedadamw", "local-adamw", "fedavg")]
    cells[-1]["runs"] = [{"seed": 10, "score": None, "error": "diverged"}]
    pairs = [{"epsilon": e, "base": base, "n": 5, "difference": 1.5, "low": 0.5, "high": 2.5, "effect": 1.0}
             for e in (None, 3.0) for base in ("local-adamw", "fedavg")]  # fmt: skip
    subject = {"title": "digits", "cells": cells, "paired": pairs}
    text = private_curves.describe({"delta": 1e-5, "device": "cpu", "subjects": {"digits": subject}})
    told = "+1.5 (+0.5 to +2.5): above"
    assert f"| 3 | 81.0 ± 12.7 | 81.0 ± 12.7 | diverged | {told} | {told} |" in text
    assert "| none | 0.01, - | 0.01, - | 0.01, - |" in text
    assert "| 3 | 0.01, 0.3 | 0.01, 0.3 | 0.01, 0.3 |" in text
    assert "curve-digits.svg" in text
    assert private_curves.draw(subject).to_dict()["layer"]


def test_membership_is_guessed_by_the_right_confidences():
    import numpy as np
    import torch

    from benchmarks.measure import membership as attack

    generator = np.random.default_rng(0)
    members = np.array([attack.draw_members(number, 400) for number in range(16)])
    assert (members.sum(0) == 8).all()
    assert (members.sum(1) == 200).all()
    noise = generator.normal(size=members.shape) + 5 * generator.normal(size=400)
    scores = attack.attack(noise + 2.0 * members, members)
    assert 0.85 < np.mean([attack.auc(*target) for target in zip(scores, members, strict=True)]) < 0.95
    assert (
        abs(np.mean([attack.auc(*target) for target in zip(attack.attack(noise, members), members, strict=True)]) - 0.5)
        < 0.03
    )
    assert attack.auc(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])) == 1.0
    assert attack.true_positives(np.array([0.0, 1, 2, 3, 4]), np.array([False, False, False, True, True]), 0.01) == 1.0
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    p = logits.softmax(1)[0, 0]
    torch.testing.assert_close(attack.scale_confidences(logits, torch.tensor([0])), (p / (1 - p)).log()[None])
