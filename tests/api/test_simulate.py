"""simulate: a recipe's numbers for a recipe's objects, every engine's for one's own, and clear errors for the rest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fedadamw
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.validation import InputError

DIGITS = ["training.rounds=3", "training.clients_per_round=4", "training.steps=3", "partition.clients=12", "threads=1"]


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def points(count=240, dtype=torch.float32):
    """Four classes of 8 x 8 pictures."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 8, 8, generator=generator).to(dtype)
    halves = (x[:, 0, :4].sum((1, 2)) > 0).long(), (x[:, 0, 4:].sum((1, 2)) > 0).long()
    return x, halves[0] + 2 * halves[1]


def cnn(dtype=torch.float32, dropout=0.0):
    torch.manual_seed(1)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 4)
    return nn.Sequential(*layers).to(dtype)


CLIENTS = [range(i, 200, 8) for i in range(8)]
FEW = {"rounds": 3, "clients_per_round": 4, "steps": 3, "batch_size": 10, "lr": 3e-3, "quiet": True, "device": "cpu"}


def simulate(model=None, train=None, test=None, clients=CLIENTS, *, dtype=torch.float32, **changes):
    x, y = points(dtype=dtype)
    given = {"metrics": {"accuracy": accuracy}, **FEW, **changes}
    return fedadamw.simulate(
        cnn(dtype) if model is None else model,
        (x[:200], y[:200]) if train is None else train,
        (x[200:], y[200:]) if test is None else test,
        clients,
        **given,
    )


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.model.parameters()])


def numbers(result):
    """What every run of the same computes: all but the time."""
    return [
        (r.round, r.lr, r.train_loss, r.test_loss, r.test_metrics, r.up_bytes, r.down_bytes) for r in result.records
    ]


def test_a_recipes_objects_give_the_recipes_numbers_bit_for_bit(tmp_path):
    experiment = load("digits", DIGITS)
    prepared = prepare(experiment)
    task, t = prepared.task, experiment.training
    own_model = prepare(experiment).workspace
    own_model.release()
    images = [task.inputs(p, task.mean, task.std) for p in (task.pixels, task.test_pixels)]
    result = fedadamw.simulate(
        own_model.module,
        (images[0], task.labels),
        (images[1], task.test_labels),
        fedadamw.partition.mix(task.labels, clients=12, concentration=experiment.partition.concentration),
        metrics={"accuracy": accuracy},
        algorithm_settings={k: v for k, v in experiment.algorithm.items() if k != "name"},
        **{name: getattr(t, name) for name in ("rounds", "clients_per_round", "steps", "batch_size", "lr", "schedule")},
        settings={f"training.{name}": getattr(t, name) for name in ("clip", "warmup_rounds", "evaluate_every")},
        device="cpu",
        quiet=True,
    )
    simulation = execute(experiment, RunFolder(tmp_path / "run"), resume=False, report=False)
    recipe = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert torch.equal(weights(result), simulation.state.server.x)
    for record, line in zip(result.records, recipe, strict=True):
        assert record.train_loss == line["train_loss"]
        assert record.test_loss == line["test_loss"]
        assert record.test_metrics == line["test_metrics"]
        assert (record.up_bytes, record.down_bytes) == (line["up_bytes"], line["down_bytes"])


def test_loop_stacked_and_two_ranks_agree():
    loop = simulate(dtype=torch.float64)
    stacked = simulate(dtype=torch.float64, settings={"stack": 4})
    ranks = simulate(dtype=torch.float64, ranks=2)
    for other in (stacked, ranks):
        torch.testing.assert_close(weights(other), weights(loop), rtol=0, atol=1e-10)
        assert [r.test_metrics for r in other.records] == [r.test_metrics for r in loop.records]
    assert loop.records[0].test_loss != loop.records[-1].test_loss


class Pictures(Dataset):
    """As tensors, or with a random shift drawn in __getitem__; from `asked` on it notes what is read."""

    def __init__(self, first, stop, *, shift=False):
        self.x, self.y = (t[first:stop] for t in points())
        self.shift = shift

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        x = self.x[index]
        return (x.roll(int(torch.randint(8, ())), -1) if self.shift else x), self.y[index]


def test_datasets_and_loaders_give_the_numbers_of_their_tensors():
    x, y = points()
    by_tensors = simulate()
    for train, test in (
        (TensorDataset(x[:200], y[:200]), TensorDataset(x[200:], y[200:])),
        (Pictures(0, 200), Pictures(200, 240)),
        (DataLoader(Pictures(0, 200), batch_size=7, shuffle=True), DataLoader(Pictures(200, 240))),
        ((x[:200].numpy(), y[:200].numpy()), (x[200:].numpy(), y[200:].numpy())),
    ):
        other = simulate(train=train, test=test)
        assert torch.equal(weights(other), weights(by_tensors))
        assert numbers(other) == numbers(by_tensors)


def test_random_transforms_and_dropout_repeat_and_resume_bit_for_bit(tmp_path):
    def run(**changes):
        torch.rand(3)  # the caller's generator is neither used nor moved
        return simulate(
            cnn(dropout=0.5),
            Pictures(0, 200, shift=True),
            Pictures(200, 240),
            settings={"checkpoint_every": 1},
            **changes,
        )

    whole = run()
    assert numbers(run()) == numbers(whole)
    stopped = run(out=tmp_path, callbacks=[lambda record: record.round == 2])
    assert stopped.stopped
    assert len(stopped.records) == 2
    resumed = run(out=tmp_path, resume=True)
    assert numbers(resumed) == numbers(whole)
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(simulate(cnn(dropout=0.5))), weights(whole))


def test_the_callers_generators_are_left_as_they_were():
    model = cnn(dropout=0.5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    simulate(model, train=Pictures(0, 200, shift=True))
    assert torch.equal(torch.rand(4), expected)


def test_batches_of_any_structure_with_losses_of_ones_own():
    class Named(Pictures):
        def __getitem__(self, index):
            return {"pixels": self.x[index], "more": {"label": self.y[index]}}

    def losses(model, batch):
        return F.cross_entropy(model(batch["pixels"]), batch["more"]["label"], reduction="none")

    def predict(model, batch):
        return model(batch["pixels"]), batch["more"]["label"]

    by_tensors = simulate()
    result = simulate(train=Named(0, 200), test=Named(200, 240), sample_losses=losses, predict=predict)
    assert numbers(result) == numbers(by_tensors)
    without = simulate(train=Named(0, 200), test=Named(200, 240), sample_losses=losses, metrics=None)
    assert without.metrics == {}
    assert without.loss == by_tensors.loss
    stacked = simulate(
        train=Named(0, 200), test=Named(200, 240), sample_losses=losses, predict=predict, settings={"stack": 4}
    )
    torch.testing.assert_close(weights(stacked), weights(by_tensors), rtol=0, atol=1e-5)


def test_regression_of_neither_images_nor_texts():
    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 1.0], [2.0, 2.0], [-1.0, 0.0]])

    def r2(outputs, targets):
        return 1 - (outputs - targets).square().sum() / (targets - targets.mean(0)).square().sum()

    result = simulate(
        nn.Linear(5, 2),
        (x[:100], y[:100]),
        (x[100:], y[100:]),
        [range(i, 100, 5) for i in range(5)],
        loss=nn.MSELoss(),
        metrics={"R2": r2},
        lr=0.05,
        rounds=30,
    )
    assert result.metrics["R2"] > 0.9


def test_a_function_makes_the_model_from_the_seed_alone():
    made = [simulate(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(weights(made[0]), weights(made[1]))
    assert not torch.equal(weights(made[0]), weights(made[2]))


def test_the_model_is_trained_in_place_and_is_ones_own_afterwards():
    model = cnn()
    before = [p.detach().clone() for p in model.parameters()]
    result = simulate(model)
    assert result.model is model
    assert not model.training
    assert all(p.grad is None and not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(before)
    torch.optim.SGD(model.parameters(), 0.1).step()


def test_frozen_parameters_stay_and_are_not_sent():
    model = cnn()
    model[0].requires_grad_(False)
    first = model[0].weight.clone()
    result = simulate(model, algorithm="fedavg")
    assert torch.equal(model[0].weight, first)
    assert result.records[0].up_bytes == 4 * 4 * (144 * 4 + 4)


def test_files_and_tables(tmp_path):
    result = simulate(out=tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "config.yaml", "manifest.json", "metrics.jsonl", "checkpoint", "report.html", "curves.png",
    }  # fmt: skip
    table = result.to_pandas()
    assert list(table["round"]) == [1, 2, 3]
    assert table["test_accuracy"].iloc[-1] == result.metrics["accuracy"]
    assert "accuracy" in result.save_report(tmp_path / "new" / "page.html").read_text()
    assert "rounds=3" in repr(result)
    with pytest.raises(InputError, match="holds a run already"):
        simulate(out=tmp_path / "run")
    again = simulate(out=tmp_path / "run", resume=True)
    assert torch.equal(weights(again), weights(result))
    assert numbers(again) == numbers(result)


def test_a_resumed_run_must_be_the_same(tmp_path):
    x, y = points()
    simulate(out=tmp_path)
    for changes in ({"train": (x[:200] + 1, y[:200])}, {"clients": CLIENTS[::-1]}, {"seed": 1}):
        with pytest.raises((InputError, RuntimeError), match="changed since|other settings"):
            simulate(out=tmp_path, resume=True, **changes)


def test_without_a_folder_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = simulate()
    assert result.folder.parent == tmp_path
    result.save_report(tmp_path / "page.html")
    del result
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


class Notes(fedadamw.Callback):
    """Everything it was told, in order."""

    def __init__(self, stop=()):
        self.told, self.stop = [], stop

    def on_start(self, records):
        self.told.append(("start", len(records)))

    def on_client(self, update):
        assert update.delta.shape == (144 * 4 + 4 + 40,)
        assert update.samples == 25
        self.told.append(("client", update.round, update.client))
        return ("client", update.round) in self.stop

    def on_evaluate(self, record, model):
        x, y = points()
        assert not model.training
        assert record.test_metrics["accuracy"] == accuracy(model(x[200:]), y[200:])
        self.told.append(("evaluate", record.round))
        return ("evaluate", record.round) in self.stop

    def on_round(self, record):
        self.told.append(("round", record.round))
        return ("round", record.round) in self.stop


def test_callbacks_see_clients_evaluations_and_rounds():
    notes, rounds = Notes(), []
    result = simulate(callbacks=[notes, lambda record: rounds.append(record.round)])
    assert rounds == [1, 2, 3]
    assert notes.told[0] == ("start", 0)
    assert [line[0] for line in notes.told[1:]] == [*["client"] * 4, "evaluate", "round"] * 3
    assert [line[1] for line in notes.told[1:7]] == [1] * 6
    assert numbers(result) == numbers(simulate())


@pytest.mark.parametrize("where", ["client", "evaluate", "round"])
def test_each_callback_can_stop_the_run(where, tmp_path):
    result = simulate(callbacks=[Notes(stop={(where, 2)})], out=tmp_path)
    assert [r.round for r in result.records] == [1, 2]
    assert result.stopped
    assert "report.html" in {p.name for p in tmp_path.iterdir()}


def test_early_stopping_counts_from_the_first_round_also_after_a_resume(tmp_path):
    stopping = fedadamw.EarlyStopping(2, min_delta=2.0)  # nothing improves an accuracy by 2
    result = simulate(rounds=9, callbacks=[stopping], out=tmp_path)
    assert len(result.records) == 3
    again = simulate(rounds=9, callbacks=[fedadamw.EarlyStopping(2, min_delta=2.0)], out=tmp_path, resume=True)
    assert len(again.records) == 3


def test_an_error_of_a_callback_loses_no_round(tmp_path):
    def fail(record):
        if record.round == 2:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulate(callbacks=[fail], out=tmp_path)
    resumed = simulate(out=tmp_path, resume=True)
    assert numbers(resumed) == numbers(simulate())


def test_ctrl_c_saves_the_round_and_says_how_to_go_on(tmp_path):
    def interrupt(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="saved after round 2.*resume=True"):
        simulate(callbacks=[interrupt], out=tmp_path)
    assert numbers(simulate(out=tmp_path, resume=True)) == numbers(simulate())


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


X, Y = points()
WRONG = {
    "model": ({"model": 3}, "int is not a torch.nn.Module"),
    "no length": ({"train": Endless()}, "Endless.*no samples by number.*map-style"),
    "dictionary": ({"train": {"x": X}}, "no samples by number"),
    "lengths": ({"train": (X[:200], Y[:100])}, r"train: tensors of shapes \(200, 1, 8, 8\), \(100,\)"),
    "empty": ({"test": (X[:0], Y[:0])}, "test: has no samples"),
    "client number": ({"clients": [[0, 200], [1]]}, "200 is not a sample number, 0 to 199"),
    "client empty": ({"clients": [[0], []]}, "1 of 2 have no samples"),
    "client mask": ({"clients": [[True, False], [1]]}, r"clients\[0\].*not a list of sample numbers"),
    "no clients": ({"clients": []}, "at least one client"),
    "per round": ({"clients_per_round": 9}, "clients_per_round=9 is more than the 8 clients"),
    "both losses": ({"loss": F.cross_entropy, "sample_losses": lambda m, b: 0}, "loss or sample_losses, not both"),
    "loss": ({"loss": lambda outputs, targets: outputs.sum()}, "does not take .*reduction='none'"),
    "metric": ({"metrics": {"accuracy": lambda o, t: o}}, "'accuracy' gave .* not a number"),
    "predict": ({"sample_losses": lambda m, b: 0}, "need predict="),
    "one number": ({"sample_losses": lambda m, b: m(b[0]).sum(), "metrics": None}, r"shape \(\), not one number each"),
    "algorithm": ({"algorithm": "fedavgg"}, "'fedavgg' is unknown.*did you mean 'fedavg'"),
    "setting": ({"algorithm_settings": {"alfa": 1}}, "alfa is unknown.*alpha"),
    "recipe's": ({"settings": {"data.source": "digits"}}, "'data.source' is for recipes"),
    "range": ({"lr": -1}, "training.lr=-1"),
    "steps": ({"epochs": 2}, "one of steps and epochs"),
    "resume": ({"resume": True}, "resume=True needs out"),
    "ranks": ({"ranks": 5}, "ranks=5: give 1 to 4"),
    "clients and ranks": ({"ranks": 2, "callbacks": [Notes()]}, "on_client sees all clients"),
    "callback": ({"callbacks": [3]}, "3 is no Callback or function"),
    "text": ({"train": [("word", 0)] * 9, "clients": [[0], [1]]}, "a batch holds .*only tensors; give collate="),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_one_line(changes, message):
    clients = {"clients_per_round": 2} if "clients" in changes else {}
    with pytest.raises(InputError, match=message) as raised:
        simulate(**{**clients, **changes})
    assert "\n" not in str(raised.value)


def test_the_command_line_says_whose_a_run_of_python_is(tmp_path):
    simulate(out=tmp_path / "run")
    for words in (["run", str(tmp_path / "run" / "config.yaml")], ["eval", str(tmp_path / "run")]):
        done = subprocess.run(
            [sys.executable, "-m", "fedadamw", *words], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 2
        assert "run that script again" in done.stderr
        assert done.stderr.count("\n") == 1


SCRIPT = """
import sys; sys.path[:0] = {paths!r}
from api.test_simulate import *
result = simulate(dtype=torch.float64, out={out!r}, callbacks=[lambda record: record.round == 2])
print(weights(result).sum().item(), len(result.records), result.folder is None)
"""


@pytest.mark.slow
def test_a_script_under_torchrun_stops_on_all_ranks(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent.parent)], out=str(tmp_path / "run")))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = sorted(line.split() for line in done.stdout.splitlines() if line.endswith(("True", "False")))
    assert [line[1:] for line in lines] == [["2", "False"], ["2", "True"]]
    assert lines[0][0] == lines[1][0]


def test_a_lost_rank_is_reported():
    def vanish(model, batch):
        if int(os.environ.get("RANK", "0")) == 1:
            os._exit(9)
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    with pytest.raises(RuntimeError, match="lost another rank"):
        simulate(sample_losses=vanish, metrics=None, ranks=2)
