"""What simulate cannot take is said in one line, and so is what ends a run."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.own_objects import CLIENTS, Pictures, cnn, numbers, points, simulate
from torch import nn
from torch.utils.data import IterableDataset

import fedadamw
from fedadamw.validation import InputError
from fedadamw.vector import statistics


class SeesClients(fedadamw.Callback):
    def on_client(self, update): ...


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


class OwnLoss(nn.Module):
    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets)


class Pair(nn.Linear):
    def __init__(self):
        super().__init__(64, 4)

    def forward(self, x):
        return super().forward(x.flatten(1)), x


class Growing(Pictures):
    """Batches that get one more tensor after a while."""

    def __getitem__(self, index):
        self.asked = getattr(self, "asked", 0) + 1
        pair = super().__getitem__(index)
        return pair if self.asked <= 38 else (*pair, pair[1])  # 18 for the fingerprint, then two batches


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squared(outputs, targets, reduction):
    return (outputs - targets) ** 2


X, Y = points()
WRONG = {
    "model": ({"model": 3}, "int is not a torch.nn.Module"),
    "no length": ({"train": Endless()}, "Endless.*no samples by number.*map-style"),
    "dictionary": ({"train": {"x": X}}, "no samples by number"),
    "lengths": ({"train": (X[:200], Y[:100])}, r"train: tensors of shapes \(200, 1, 8, 8\), \(100,\)"),
    "empty": ({"test": (X[:0], Y[:0])}, "test: has no samples"),
    "client number": ({"clients": [[0, 200], [1]]}, "200 is not a sample number, 0 to 199"),
    "client empty": ({"clients": [[0], []]}, "1 of 2 have no samples, such as client 1$"),
    "client mask": ({"clients": [[True, False], [1]]}, r"clients\[0\].*not a list of sample numbers"),
    "client count": ({"clients": 8, "clients_per_round": 2}, "clients=8: give a list .*fedadamw.partition"),
    "no clients": ({"clients": []}, "at least one client"),
    "per round": ({"clients_per_round": 9}, "clients_per_round=9 is more than the 8 clients"),
    "both losses": ({"loss": F.cross_entropy, "sample_losses": lambda m, b: 0}, "loss or sample_losses, not both"),
    "loss": ({"loss": lambda outputs, targets: outputs.sum()}, "does not take .*reduction='none'"),
    "loss module": ({"loss": OwnLoss()}, "loss=OwnLoss does not take .*reduction='none'"),
    "model's outputs": ({"model": Pair()}, "the model returns a tuple, not a tensor: give predict="),
    "broadcast": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), "loss": squared, "metrics": None},
        r"outputs \(10, 1\) and targets \(10,\) were compared across samples, \(10, 10\)",
    ),
    "metrics": ({"metrics": lambda outputs, targets: 0.0}, "metrics: .* is no dict"),
    "metric": ({"metrics": {"accuracy": lambda o, t: o}}, "'accuracy' gave .* not a number"),
    "predict": ({"sample_losses": lambda m, b: 0}, "need predict="),
    "predicted list": (
        {"sample_losses": losses, "predict": lambda model, batch: (model(batch[0]), batch[1].tolist())},
        "test: targets are a list, not a tensor",
    ),
    "predicted rows": (
        {"sample_losses": losses, "predict": lambda model, batch: (model(batch[0]).flatten(), batch[1])},
        r"test: outputs of 40 samples have shape \(160,\)",
    ),
    "one number": ({"sample_losses": lambda m, b: m(b[0]).sum(), "metrics": None}, r"shape \(\), not one number each"),
    "algorithm": ({"algorithm": "fedavgg"}, "'fedavgg' is unknown.*did you mean 'fedavg'"),
    "setting": ({"algorithm_settings": {"alfa": 1}}, "alfa is unknown.*alpha"),
    "recipe's": ({"settings": {"data.source": "digits"}}, "'data.source' is for recipes"),
    "no clock": ({"settings": {"federation.deadline_s": 3}}, "'federation.deadline_s' acts with devices"),
    "section": ({"settings": {"training": {"steps": 2}}}, "'training' is a section"),
    "range": ({"lr": -1}, "training.lr=-1"),
    "steps": ({"epochs": 2}, "one of steps and epochs"),
    "resume": ({"resume": True}, "resume=True needs out"),
    "ranks": ({"ranks": 5}, "ranks=5: give 1 to 4"),
    "ranks on a GPU": ({"ranks": 2, "device": "cuda"}, "ranks=2 share a CPU; set device='cpu'"),
    "clients and ranks": ({"ranks": 2, "callbacks": [SeesClients()]}, "on_client sees all clients"),
    "one callback": ({"callbacks": fedadamw.EarlyStopping(2)}, "callbacks: give a list"),
    "callback": ({"callbacks": [3]}, "3 is no Callback or function"),
    "words": ({"train": (X[:200].numpy(), np.array(["a"] * 200))}, "train: an array of <U1 holds no numbers"),
    "other parts": (
        {"train": Growing(0, 200), "sample_losses": losses, "metrics": None},
        "other parts than an earlier",
    ),
    "text": ({"train": [("word", 0)] * 9, "clients": [[0], [1]]}, "a batch holds .*only tensors; give collate="),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(changes, message):
    clients = {"clients_per_round": 2} if "clients" in changes else {}
    with pytest.raises(InputError, match=message) as raised:
        simulate(**{**clients, **changes})
    assert "\n" not in str(raised.value)


def test_the_command_line_says_whose_a_run_of_python_is(tmp_path, monkeypatch, run_main):
    simulate(out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for words in (["run", str(tmp_path / "run" / "config.yaml")], ["eval", str(tmp_path / "run")]):
        done = run_main(*words)
        assert done.returncode == 2
        assert "run that script again" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_resumed_run_must_be_the_same(tmp_path):
    frozen = cnn()
    frozen[0].requires_grad_(False)
    simulate(frozen, train=Pictures(0, 200), out=tmp_path)
    other = cnn()
    other[0].requires_grad_(False)
    other[0].weight.add_(1)
    for changes in (
        {"train": Pictures(1, 201)},
        {"clients": CLIENTS[::-1]},
        {"seed": 1},
        {"model": other},
    ):
        with pytest.raises((InputError, RuntimeError), match="changed since|other settings"):
            simulate(out=tmp_path, resume=True, **{"model": frozen, "train": Pictures(0, 200), **changes})
    assert simulate(frozen, train=Pictures(0, 200), out=tmp_path, resume=True).records


def test_data_that_read_differently_each_time_are_no_other_data(tmp_path):
    class Unseeded(Pictures):
        def __getitem__(self, index):
            return self.x[index] + next(self.numbers), self.y[index]

        numbers = iter(range(10**6))

    simulate(train=Unseeded(0, 200), out=tmp_path, rounds=3, callbacks=[lambda record: record.round == 2])
    assert len(simulate(train=Unseeded(0, 200), out=tmp_path, rounds=3, resume=True).records) == 3


def test_a_run_that_cannot_be_longer_says_what_a_script_can_do(tmp_path):
    simulate(out=tmp_path)
    with pytest.raises(InputError, match="start a new run with the trained model, in another folder$"):
        simulate(out=tmp_path, resume=True, rounds=9)


def test_a_module_with_batch_norm_that_was_trained_in_place_goes_on(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    start = copy.deepcopy(model)
    simulate(model, out=tmp_path / "halves", callbacks=[lambda record: record.round == 2])
    halves = simulate(model, out=tmp_path / "halves", resume=True)
    whole = simulate(start, out=tmp_path / "whole")
    assert numbers(halves) == numbers(whole)
    assert all(torch.equal(halves.model.state_dict()[n], t) for n, t in statistics(whole.model).items())


def test_a_lost_rank_is_reported():
    def vanish(model, batch):
        if int(os.environ.get("RANK", "0")) == 1:
            os._exit(9)
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    with pytest.raises(RuntimeError, match="lost another rank"):
        simulate(sample_losses=vanish, metrics=None, ranks=2)


def test_an_error_on_another_rank_is_named_and_signals_are_left_as_they_were():
    def fail(model, batch):
        if os.environ.get("RANK") == "1":
            raise ZeroDivisionError("odd batch")
        return losses(model, batch)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match=r"^lost another rank \(rank 1: ZeroDivisionError: odd batch\)$"):
        simulate(sample_losses=fail, metrics=None, ranks=2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_collate_function_is_used_for_tensors_too():
    x, y = points()
    seen = []

    def collate(rows):
        seen.append(len(rows))
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    simulate(train=(x[:200], y[:200]), collate=collate)
    assert seen


def test_what_only_looks_right_is_refused_with_what_to_give(tmp_path):
    x, y = points()
    with pytest.raises(InputError, match="lists of numbers are no tensors"):
        simulate(train=(x.tolist(), y.tolist()))
    with pytest.raises(InputError, match="algorithms='fedavg': give a list"):
        fedadamw.compare("digits", "fedavg", out=tmp_path / "study")
    simulate(out=tmp_path / "run")
    with pytest.raises(InputError, match="is a run's folder: --resume --out"):
        fedadamw.run(str(tmp_path / "run"))
