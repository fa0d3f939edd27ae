"""The stacked engine matches the loop, for every algorithm and clients of any size."""

import gc
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.cases import CASES, EVERYWHERE, fast_first, rows
from support.image_sets import images
from support.runs import simulation
from support.sequences import attention_model, unequal_clients
from torch import nn

from fedadamw.algorithms import registry
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.engine import step
from fedadamw.engine.device_memory import is_out_of_memory
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.loading import build_seeded
from fedadamw.prepare import simulation as prepare
from fedadamw.settings.load import parse_settings
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError


@pytest.mark.parametrize("stack", fast_first([5], [2]))
@pytest.mark.parametrize("name", rows(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_stacked_clients_match_the_loop(name, stack, task):
    how = {"rounds": 3, "clients_per_round": 5, "clip": 1.0}
    loop = simulation(EVERYWHERE[name], task, **how)
    stacked = simulation(EVERYWHERE[name], task, **how, stack=stack)
    for ours, theirs in zip(stacked.rounds(), loop.rounds(), strict=True):
        torch.testing.assert_close(stacked.state.tensors(), loop.state.tensors(), rtol=1e-10, atol=1e-10)
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-10)
        assert stacked.losses == pytest.approx(loop.losses, abs=1e-10)
        assert (ours.clients, ours.up_bytes, ours.down_bytes) == (theirs.clients, theirs.up_bytes, theirs.down_bytes)


@pytest.mark.parametrize("name", ["vit-nano", "swin-nano", "resnet-nano"])
@pytest.mark.filterwarnings("error")
def test_every_architecture_stacks_without_a_slow_path(name):
    def run(stack):
        built = build_seeded(lambda: vision.build(name, vision.ImageShape(32, 3, 10)), 0)
        for module in built.model.modules():  # what is dropped is drawn, and cannot be the same in both
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        data = images(60)
        task = ImageTask(data, data, device=torch.device("cpu"), crop_padding=4, flip=True)
        clients = [np.arange(0, 9), np.arange(9, 40), np.arange(40, 60)]
        training = TrainingSettings(rounds=2, clients_per_round=3, steps=2, batch_size=10, lr=0.01)
        sim = Simulation.in_process(built.model.double(), FedAvg(), DoubleTask(task), clients, training, stack=stack)
        return [record.train_loss for record in sim.rounds()], sim.state.server.x

    losses, x = run(2)  # and one that is left over
    expected, of_loop = run(1)
    assert losses == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(x, of_loop, rtol=0, atol=1e-10)


class DoubleTask:
    """A task whose inputs are float64."""

    def __init__(self, task):
        self.task = task

    def __getattr__(self, name):
        return getattr(self.task, name)

    def batch(self, samples, drawn):
        inputs, labels = self.task.batch(samples, drawn)
        return inputs.double(), labels

    def outputs(self, model, start, stop):
        return torch.zeros(stop - start, 2)


@pytest.mark.parametrize("stack", [1, 5])
def test_micro_batches_match_whole_batches(stack, task):
    whole = simulation(CASES["fedadamw-mean-v"], task, clients_per_round=5, clip=1.0)
    parts = simulation(CASES["fedadamw-mean-v"], task, clients_per_round=5, clip=1.0, stack=stack, micro_batch=3)
    for ours, theirs in zip(parts.rounds(), whole.rounds(), strict=True):
        torch.testing.assert_close(parts.state.server.x, whole.state.server.x, rtol=0, atol=1e-10)
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-10)


def test_micro_batches_are_refused_with_batch_norm(task):
    training = TrainingSettings(rounds=2, clients_per_round=5, steps=3, batch_size=16, lr=0.05, micro_batch=4)
    with pytest.raises(InputError, match="micro_batch=4: BatchNorm"):
        Simulation.in_process(NormModel().double(), FedAvg(), task, unequal_clients(task), training)


@pytest.mark.parametrize("name", rows(CASES))
def test_chunked_steps_match_whole_ones(name, task, monkeypatch):
    how = {"rounds": 3, "clients_per_round": 5, "clip": 1.0}
    whole = simulation(CASES[name], task, **how)
    list(whole.rounds())
    monkeypatch.setattr(step, "CHUNK", 7)
    pieces = simulation(CASES[name], task, **how)
    list(pieces.rounds())
    for a, b in zip(pieces.state.server, whole.state.server, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow  # compiling takes a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.skipif(not step.has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_compiled_steps_match_plain_ones(task):
    case = CASES["fedadamw-mean-v"]
    plain = simulation(case, task, clients_per_round=5, clip=1.0)
    compiled = simulation(case, task, clients_per_round=5, clip=1.0, step="compiled")
    for ours, theirs in zip(compiled.rounds(), plain.rounds(), strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-10)
    torch.testing.assert_close(compiled.state.server.x, plain.state.server.x, rtol=0, atol=1e-10)


class OddModel(nn.Module):
    """Has parameters without numbers, and one that is a single number."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.nothing = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x):
        return self.scale * self.classifier(x.mean(1))


@pytest.mark.parametrize("name", ["fedadamw", "fedlamb", "fedmuon"])
@pytest.mark.filterwarnings("error:the loss does not depend on")
def test_parameters_without_numbers_and_single_ones_are_trained_in_every_engine(name, task):
    def run(stack, **changes):
        torch.manual_seed(0)
        model = OddModel().double()
        algorithm = registry.make(name, registry.validate(name, {}), Blocks.of(model))
        training = TrainingSettings(rounds=2, clients_per_round=5, steps=3, batch_size=16, lr=0.01, **changes)
        sim = Simulation.in_process(model, algorithm, task, unequal_clients(task), training, stack=stack)
        return sim.state.server.x, list(sim.rounds()), sim.state.server.x

    (x0, _, stacked), (_, records, loop) = run(5), run(1, diagnostics=True)
    torch.testing.assert_close(stacked, loop, rtol=0, atol=1e-10)
    assert bool((stacked != x0).all())
    assert all(math.isfinite(n) for n in records[-1].diagnostics["update_norm_by_kind"].values())


def test_groups_of_every_size_are_compiled_by_few_kernels(task, monkeypatch):
    compile_, kernels = torch.compile, []

    def compiler(graph, inputs):
        kernels.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda step, **how: compile_(step, backend=compiler, **how))
    plain = simulation(CASES["fedadamw-mean-v"], task, clients_per_round=5, rounds=1)
    compiled = simulation(CASES["fedadamw-mean-v"], task, clients_per_round=5, rounds=1, stack=3, step="compiled")
    list(compiled.rounds())
    list(plain.rounds())
    torch.testing.assert_close(compiled.state.server.x, plain.state.server.x, rtol=0, atol=1e-10)
    assert 2 <= len(kernels) <= 3, "for groups of 3, for any other number, and for a client that is alone"


MESSAGES = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "[Errno 12] Cannot allocate memory",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes",
)


def test_out_of_memory_messages_are_recognised():
    assert all(is_out_of_memory(RuntimeError(message)) for message in MESSAGES)
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    others = ("CUDA error: device-side assert triggered", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "")
    assert not any(is_out_of_memory(RuntimeError(message)) for message in others)
    assert not is_out_of_memory(ValueError(MESSAGES[0]))


@pytest.mark.parametrize("full", [torch.OutOfMemoryError(), RuntimeError(MESSAGES[2])])
def test_a_group_that_does_not_fit_in_memory_is_halved_permanently(task, monkeypatch, full):
    loop = simulation(CASES["fedadamw-mean-v"], task, clients_per_round=5)
    list(loop.rounds())
    stacked = simulation(CASES["fedadamw-mean-v"], task, clients_per_round=5, stack=5)
    train, seen = stacked.clients.engine._train_group, []

    def small(part, *args):
        seen.append(len(part))
        if len(part) > 2:
            raise full
        return train(part, *args)

    monkeypatch.setattr(stacked.clients.engine, "_train_group", small)
    list(stacked.rounds())
    assert seen[:5] == [5, 2, 2, 1, 2], "refused once, then by twos"
    torch.testing.assert_close(stacked.state.server.x, loop.state.server.x, rtol=0, atol=1e-10)


@dataclass(frozen=True)
class Counting(FedAvg):
    """FedAvg that counts the stacked vectors which are there when a group starts."""

    def client_start(self, down, memory):
        d = down.x.shape[-1]
        SEEN.append(sum(_size(t) == 2 * d * 8 for t in gc.get_objects() if type(t) is torch.Tensor))
        return super().client_start(down, memory)


def _size(t: torch.Tensor) -> int:
    """Bytes of a tensor; 0 of one inside of `vmap`, which has no storage, and may live on where vmap failed."""
    return 0 if torch._C._functorch.is_batchedtensor(t) else t.untyped_storage().nbytes()


SEEN: list[int] = []


@pytest.mark.parametrize("rejected", [False, True])
def test_a_group_is_released_before_the_next_trains(task, rejected, monkeypatch):
    SEEN.clear()
    training = TrainingSettings(rounds=1, clients_per_round=5, steps=2, batch_size=4, lr=0.05)
    sim = Simulation.in_process(attention_model(), Counting(), task, unequal_clients(task), training, stack=2)
    if rejected:
        # answers of the first group are rejected
        monkeypatch.setattr("fedadamw.engine.client.all_finite", lambda _: len(SEEN) > 1)
    sim.step()
    assert SEEN == [0, 0, 0]


class Asks(nn.Module):
    """A model whose code looks at a number, as GPT-2's and MPNet's do in some versions."""

    def __init__(self):
        super().__init__()
        self.inner = attention_model()

    def forward(self, x):
        return self.inner(x) if float(x.abs().sum()) >= 0 else x


class Once(torch.autograd.Function):
    """A function of its own that knows no transforms, as BLOOM's activation."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class Own(Asks):
    """A model that calls a function which knows no transforms."""

    def forward(self, x):
        return Once.apply(self.inner(x))


def of_model(kind, task, **how):
    torch.manual_seed(0)
    training = TrainingSettings(rounds=2, clients_per_round=5, steps=3, batch_size=16, lr=0.05)
    return Simulation.in_process(kind(), FedAvg(), task, unequal_clients(task), training, **how)


@pytest.mark.parametrize("kind", [Asks, Own])
def test_a_model_that_cannot_be_stacked_falls_back_to_the_loop(kind, task):
    loop, chosen = of_model(kind, task), of_model(kind, task, stack=5, may_loop=True)
    with pytest.warns(UserWarning, match="does not train stacked") as said:
        records = list(chosen.rounds())
    assert len(said) == 1, "once, not in each round"
    assert [r.train_loss for r in records] == [r.train_loss for r in loop.rounds()]
    assert torch.equal(chosen.state.server.x, loop.state.server.x)
    with pytest.raises(InputError, match=r"does not train stacked: set stack=1 \("):
        of_model(kind, task, stack=5).step()


def test_model_errors_are_raised_as_in_the_loop(task):
    class Broken(Asks):
        def forward(self, x):
            raise TypeError("a fault of its own")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TypeError, match="a fault of its own"):
            of_model(Broken, task, stack=5, may_loop=True).step()


@pytest.mark.parametrize(
    ("fault", "may_loop"),
    [
        (IndexError("Target 9 is out of bounds."), False),
        (AssertionError(), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
    ],
)
@pytest.mark.filterwarnings("error:this model does not train stacked")
def test_model_errors_are_not_reported_as_stacking_errors(task, fault, may_loop):
    class Faulty(Asks):
        def forward(self, x):
            raise fault

    with pytest.raises(type(fault)) as raised:
        of_model(Faulty, task, stack=5, may_loop=may_loop).step()
    assert raised.value is fault


def test_clients_are_stacked_on_a_gpu_by_default():
    experiment = parse_settings({"training": {"clients_per_round": 7, "steps": 1}})
    assert prepare.default_stack(experiment, torch.device("cuda", 0)) == 7
    assert prepare.default_stack(experiment, torch.device("cpu")) == 1


class NormModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        return self.classifier(torch.relu(self.norm(self.first(x[:, 0]))))


def test_batch_norm_clients_are_stacked_with_equal_batch_sizes(task):
    def run(stack):
        torch.manual_seed(0)
        clients = unequal_clients(task)
        training = TrainingSettings(rounds=2, clients_per_round=5, steps=3, batch_size=16, lr=0.05)
        sim = Simulation.in_process(NormModel().double(), FedAvg(), task, clients, training, stack=stack)
        list(sim.rounds())
        return sim.state

    stacked, loop = run(5), run(1)
    torch.testing.assert_close(stacked.server.x, loop.server.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(stacked.statistics, loop.statistics, rtol=0, atol=1e-10)
