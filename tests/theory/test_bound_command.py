"""`fedadamw theory bound`: on a run, and what it refuses."""

import json
import re

import pytest
import torch
import yaml

from fedadamw.theory.bound import MOMENTS
from fedadamw.theory.bound_output import bound_chart, bound_facts
from fedadamw.theory.bound_run import read_run
from fedadamw.theory.curvature.subject import open_subject
from fedadamw.trained.load import open_run
from fedadamw.vector import trainable


@pytest.fixture(scope="module")
def measured(finished_run):
    """A run and what was read from it, with the calls of its progress."""
    calls = []
    return read_run(finished_run, 16, (), lambda *call: calls.append(call)), calls


def test_what_is_read_is_the_runs(measured, finished_run):
    run, calls = measured
    settings = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert (run.lr, run.batch_size) == (settings["training"]["lr"], settings["training"]["batch_size"])
    assert run.weight_decay == settings["algorithm"]["weight_decay"]
    assert run.samples == json.loads((finished_run / "manifest.json").read_text())["data"]["train"]["samples"]
    x = torch.cat([p.detach().flatten() for p in trainable(open_run(finished_run).model).values()])
    assert run.root_h.shape == x.shape
    assert run.distance == pytest.approx(float(x.double().square().sum()), rel=1e-6)
    assert calls[-1] == ("gradients", 16, 16)


def test_curvature_is_the_mean_square_of_single_gradients(measured, finished_run):
    subject, total = open_subject(finished_run), 0.0
    for number in subject.draw(16):
        (batch,) = subject.batches(number.unsqueeze(0), 1)
        subject.model.zero_grad()
        subject.task.losses(subject.model, batch).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in trainable(subject.model).values()])
        total = total + gradient.double().square() / 16
    assert torch.from_numpy(measured[0].root_h ** 2).allclose(total, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("moments", MOMENTS)
def test_the_command_prints_a_row_for_each_prior_and_says_that_it_is_vacuous(moments, finished_run, run_main, tmp_path):
    words = ("--moments", moments, "--rho", "0.01", "--rho", "0.1", "--samples", "8")
    done = run_main("theory", "bound", str(finished_run), *words, "--json", str(tmp_path / "bound.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "vacuous: the least gap is" in done.stdout
    facts = json.loads((tmp_path / "bound.json").read_text())
    assert [row["rho"] for row in facts["bounds"]] == [0.01, 0.1]
    assert all(row["best"]["gap"] <= row["own"]["gap"] for row in facts["bounds"])


def test_the_figure_has_a_curve_for_each_prior_and_a_mark_for_each_weight_decay_that_it_shows(measured):
    facts = bound_facts(measured[0], [0.01, 0.1], "minibatch")
    text = json.dumps(bound_chart(facts).to_dict())
    assert len(facts["curve"]) == 2 * 97
    assert {"rho 0.01", "rho 0.1", "the run's", "the best"} <= set(re.findall(r'"([^"]+)"', text))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere",), "nowhere holds no run (no config.yaml)"),
        (("RUN", "--moments", "minibach"), "did you mean 'minibatch'"),
        (("RUN", "--rho", "0"), "--rho 0: must be above 0"),
        (("RUN", "-s", "training.lr=1"), "would change the model"),
    ],
)
def test_a_wrong_word_is_one_clear_line(words, says, finished_run, run_main):
    done = run_main("theory", "bound", *(str(finished_run) if word == "RUN" else word for word in words))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_a_run_of_sgd_is_refused(finished_run, run_main, tmp_path):
    settings = yaml.safe_load((finished_run / "config.yaml").read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "algorithm": {"name": "fedavg"}}))
    done = run_main("theory", "bound", str(tmp_path))
    assert "is a run of fedavg; the bound holds for AdamW's steps" in done.stderr
