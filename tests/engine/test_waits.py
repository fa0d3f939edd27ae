"""How often the host reads a number from the device: each time it waits until the device is done."""

import shutil

import pytest
import torch
from support.cases import CASES
from support.runs import simulation
from torch.utils._python_dispatch import TorchDispatchMode

from fedadamw.data.text_tasks import LanguageTask
from fedadamw.data.texts import Texts
from fedadamw.engine.ranks import RankLostError, Ranks
from fedadamw.engine.step import has_compiler, make_step
from fedadamw.models.text import Form
from fedadamw.vector import all_finite


class Reads(TorchDispatchMode):
    """Counts the numbers that are read from tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("number", [1.0, torch.inf, -torch.inf, torch.nan])
def test_whether_tensors_are_finite_is_read_once(number):
    tensors = [torch.ones(3), torch.zeros(0), torch.tensor([1.0, number], dtype=torch.float64), torch.arange(2)]
    with Reads() as reads:
        assert all_finite(tensors) == (number == 1.0)
    assert reads.count == 1
    assert all_finite([torch.zeros(0)])


@pytest.mark.parametrize("stack", [1, 3])
def test_a_round_reads_two_numbers_and_one_for_each_client(task, stack):
    sim = simulation(CASES["fedadamw-mean-v"], task, rounds=3, clients_per_round=3, evaluate_every=3, stack=stack)
    sim.clients.engine.step = make_step(sim.algorithm, None, "plain")  # a GPU's; the fused one, on a CPU, reads
    with Reads() as reads:
        sim.step()
    assert reads.count <= 3 + 2, "one for each answer, one for the mean loss, one for the new state"


def test_training_on_texts_predicts_no_tokens():
    words = torch.arange(1, 31).int().numpy()
    data = Texts(words, (words > 0).astype("int8"), torch.arange(0, 31, 10).numpy(), words[:3].astype("int64"), ())
    task = LanguageTask(data, data, Form(0, 10), device=torch.device("cpu"))
    table = torch.randn(40, 40)

    def model(input_ids, **_settings):
        return type("Out", (), {"logits": table[input_ids]})

    with Reads() as reads:
        task.losses(model, task.batch(torch.arange(3), torch.empty(3, 0)))
    assert not any("argmax" in name for name in reads.seen)
    assert 0 <= task.score(task.outputs(model, 0, 3)).metrics["accuracy"] <= 1


def test_seconds_of_waiting_on_a_gpu_are_those_of_other_ranks(monkeypatch):
    team, calls = Ranks.__new__(Ranks), []
    team.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("finish"))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t: calls.append("reduce"))
    team.sum([torch.ones(2), torch.ones(3)])
    assert calls == ["finish", "reduce", "reduce", "finish"]

    def broken(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(RuntimeError, match="device-side assert") as raised:
        team.sum([torch.ones(2)])
    assert not isinstance(raised.value, RankLostError), "this rank's own error"


def test_a_gpu_without_a_c_compiler_compiles_nothing(monkeypatch):
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    assert has_compiler(torch.device("cuda", 0))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not has_compiler(torch.device("cuda", 0))
