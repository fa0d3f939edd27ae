"""simulate: a recipe's numbers for a recipe's objects, and every engine's for one's own."""

import json
import os
import subprocess
import sys
from collections import UserDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.own_objects import Pictures, accuracy, cnn, numbers, points, simulate, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import fedadamw
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.validation import InputError

DIGITS = ["training.rounds=3", "training.clients_per_round=4", "training.steps=3", "partition.clients=12", "threads=1"]


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


def test_devices_bring_the_clock_and_the_deadline_of_a_federation():
    speed = {"devices.speed.kind": "log-normal"}
    waits = simulate(settings=speed)
    hurries = simulate(settings={**speed, "federation.deadline_s": 1e-9, "federation.quorum": 1})
    assert all(
        r.devices["counted"] == 1 < s.devices["counted"] for r, s in zip(hurries.records, waits.records, strict=True)
    )
    assert hurries.records[-1].virtual_s < waits.records[-1].virtual_s


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


def test_a_kind_of_tensor_dataset_is_read_by_its_own_index():
    class Dark(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return 0 * x, y

    x, y = points()
    dark = simulate(train=Dark(x[:200], y[:200]))
    assert torch.equal(weights(dark), weights(simulate(train=(0 * x[:200], y[:200]))))


def test_read_only_arrays_are_taken_without_a_warning():
    x, y = (t[:200].numpy().copy() for t in points())
    x.flags.writeable = y.flags.writeable = False
    assert numbers(simulate(train=(x, y))) == numbers(simulate())


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


def test_torchs_settings_and_a_lone_rank_of_the_environment_are_left_alone(monkeypatch, tmp_path):
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    monkeypatch.setenv("RANK", "1")  # of a cluster's job, without torchrun
    result = simulate(settings={"threads": threads + 1}, out=tmp_path)
    assert result.folder == tmp_path
    assert (torch.get_num_threads(), torch.backends.cudnn.allow_tf32) == (threads, tf32)


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
    encoded = simulate(
        train=Named(0, 200),
        test=Named(200, 240),
        collate=lambda rows: UserDict(default_collate(rows)),  # as tokenizers give
        sample_losses=losses,
        predict=predict,
    )
    assert numbers(encoded) == numbers(by_tensors)
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


def test_metrics_are_computed_in_full_precision_in_a_bfloat16_run():
    def thirds(outputs, targets):
        return torch.ones(1, len(outputs)) @ torch.full((len(outputs), 1), 1 / 3)

    result = simulate(settings={"training.precision": "bf16"}, metrics={"sum": thirds}, rounds=1)
    assert result.metrics["sum"] == pytest.approx(40 / 3, rel=1e-6)


def test_a_section_inside_another_can_be_given_whole():
    plain, outer, named = (
        weights(simulate(rounds=2, settings=settings))
        for settings in ({}, {"training.outer": {}}, {"training.outer.lr": 0.7})
    )
    assert torch.equal(outer, named)
    assert not torch.equal(outer, plain)
    personal = {"finetune": 2}
    tuned = simulate(rounds=1, held_out=0.5, settings={"personal": personal, "training.client_evaluation": 1})
    assert tuned.records[-1].tuned is not None


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


def test_without_a_folder_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    result = simulate()
    assert result.folder.parent == tmp_path
    result.save_report(tmp_path / "page.html")
    del result
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


SCRIPT = """
import sys, torch; sys.path[:0] = {paths!r}
from support.own_objects import *
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


def test_a_run_at_a_constant_rate_goes_on_to_more_rounds(tmp_path):
    simulate(out=tmp_path, schedule="constant")
    longer = simulate(out=tmp_path, schedule="constant", rounds=5, resume=True)
    assert numbers(longer) == numbers(simulate(schedule="constant", rounds=5))
    with pytest.raises(InputError, match="rounds"):
        simulate(out=tmp_path, schedule="constant", rounds=4, resume=True)


def test_the_best_round_can_be_loaded(tmp_path):
    seen = {}

    class Keep(fedadamw.Callback):
        def on_evaluate(self, record, model):
            seen[record.round] = torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    result = simulate(rounds=6, lr=0.1, out=tmp_path, settings={"keep_best": True}, callbacks=[Keep()])
    scores = [record.test_metrics["accuracy"] for record in result.records]
    best = scores.index(max(scores)) + 1
    assert result.load_best() == best
    assert torch.equal(weights(result), seen[best])
    with pytest.raises(InputError, match="keep_best"):
        simulate().load_best()


def test_a_loss_module_weighs_classes():
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0])

    def by_hand(outputs, targets, reduction):
        return F.cross_entropy(outputs, targets, reduction="none") * weight[targets]

    loss = nn.CrossEntropyLoss(weight=weight)
    assert numbers(simulate(loss=loss)) == numbers(simulate(loss=by_hand))
    assert loss.reduction == "mean"
