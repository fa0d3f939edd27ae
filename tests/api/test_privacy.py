"""`fedadamw.simulate(..., privacy=...)`: the result's epsilon, records without training losses, a budget, refusals."""

import math

import pytest
import torch
from torch import nn

import fedadamw
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.validation import InputError

GENERATOR = torch.Generator().manual_seed(0)
TRAIN = (torch.randn(80, 4, generator=GENERATOR), torch.arange(80) % 2)
TEST = (torch.randn(20, 4, generator=GENERATOR), torch.arange(20) % 2)
CLIENTS = [list(range(20)), list(range(20, 40)), list(range(40, 80))]


def simulate(privacy, **others):
    torch.manual_seed(0)
    how = {"rounds": 4, "clients_per_round": 2, "steps": 2, "batch_size": 10, "quiet": True, "schedule": "constant"}
    return fedadamw.simulate(nn.Linear(4, 2), TRAIN, TEST, CLIENTS, privacy=privacy, **{**how, **others})


def test_a_result_has_the_epsilon_of_the_worst_client_and_no_training_loss():
    result = simulate({"epsilon": 5.0})
    assert 5 * (1 - 1e-3) <= result.epsilon <= 5
    assert [record.train_loss for record in result.records] == [None] * 4
    assert result.epsilon == result.records[-1].epsilon
    assert f"epsilon={result.epsilon:.4g}" in repr(result)
    assert result.to_pandas()["epsilon"].tolist() == [record.epsilon for record in result.records]
    assert "Epsilon" in result.plot("epsilon")._repr_svg_()
    assert "train_loss" in result.to_pandas()


def test_the_section_as_an_object_is_the_same_as_its_settings():
    given = PrivacySettings(noise_multiplier=2.0, clip=0.5)
    one, other = simulate(given), simulate({"noise_multiplier": 2.0}, settings={"privacy.clip": 0.5})
    assert [record.epsilon for record in one.records] == [record.epsilon for record in other.records]
    assert one.records[-1].test_loss == other.records[-1].test_loss
    assert simulate(None).epsilon is None


def test_without_noise_epsilon_is_infinite():
    assert simulate({"noise_multiplier": 0.0}).epsilon == math.inf


def test_a_budget_ends_it_and_says_so(tmp_path, capsys):
    whole = simulate({"noise_multiplier": 2.0})
    budget = (whole.records[0].epsilon + whole.epsilon) / 2
    result = simulate({"noise_multiplier": 2.0, "budget": budget}, out=tmp_path / "run", quiet=False)
    assert result.stopped
    assert result.epsilon <= budget < whole.epsilon
    assert result.records[-1].test_loss is not None
    assert f"privacy.budget={budget:g} ended the run after round {len(result.records)} of 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("privacy", "others", "message"),
    [
        (8.0, {}, r"privacy=8.0: give its settings by name"),
        ({"epsilon": 8.0, "noise": 1.0}, {}, r"privacy.noise"),
        ({}, {}, r"privacy: give one of noise_multiplier and epsilon"),
        ({"epsilon": 8.0}, {"steps": None}, r"training.epochs=1.* set training.steps"),
    ],
)
def test_what_does_not_fit_is_one_line(privacy, others, message):
    with pytest.raises(InputError, match=message):
        simulate(privacy, **others)
