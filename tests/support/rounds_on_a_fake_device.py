"""Rounds and evaluations on a device that only pretends: no operation mixes its tensors with those of the CPU.

A private backend of torch, with tensors that have a device and no numbers, stands for a GPU.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset, default_collate
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedadamw.algorithms import registry
from fedadamw.api.python_task import PythonTask, check_functions
from fedadamw.api.rows import DatasetRows
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.text_tasks import LanguageTask, TextTask
from fedadamw.data.texts import Texts
from fedadamw.engine.loop import Loop
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.stacked import Stacked
from fedadamw.models import vision
from fedadamw.models.text import Form
from fedadamw.settings.training import TrainingSettings
from support.cases import CASES, VARIANTS
from support.image_sets import images
from support.sequences import SmallTransformer


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


@pytest.fixture(scope="module")
def device():
    backend_registration._setup_privateuseone_for_python_backend("pretend", backend_module=Backend())
    return torch.device("pretend", 0)


@pytest.fixture
def pretending(device, monkeypatch):
    """A mode in which tensors have no numbers; where one is asked for, it is 1."""
    for name, value in (("__float__", 1.0), ("__bool__", True), ("__int__", 1), ("item", 1)):
        monkeypatch.setattr(torch.Tensor, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: np.ones(t.shape).tolist())
    monkeypatch.setattr(torch.Tensor, "numpy", lambda t: np.ones(t.shape))
    make = torch.tensor

    def made(data, *, dtype=None, device=None):  # torch makes it without asking the mode
        here = make(data, dtype=dtype)
        on_cpu = device in (None, torch.device("cpu"))
        return here if on_cpu else torch.empty(here.shape, dtype=here.dtype, device=device)

    monkeypatch.setattr(torch, "tensor", made)
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda t, data: made(data, dtype=t.dtype, device=t.device))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield device


def moved(model, device):
    """The model with parameters and buffers that pretend to be on the device."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, t in held.items():
                if t is not None:
                    there = torch.empty(t.shape, dtype=t.dtype, device=device)
                    held[name] = nn.Parameter(there) if isinstance(t, nn.Parameter) else there
    return model


def run(name, model, task, device, stack=1, **settings):
    case = CASES[name]
    algorithm = registry.make(case.name, registry.validate(case.name, case.settings), Blocks.of(model))
    work = {"clients_per_round": 3, "steps": 2, "batch_size": 4, "lr": 0.01, "client_evaluation": 1}
    training = TrainingSettings(**{**work, **settings})
    clients = [np.arange(0, 3), np.arange(3, 20), np.arange(20, 30)]
    sim = Simulation.in_process(model, algorithm, task, clients, training, stack=stack, held_out=clients)
    assert sim.workspace.y.device == device
    list(sim.rounds())


@pytest.mark.parametrize(
    ("name", "stack", "settings"),
    [
        ("fedadamw-mean-v", 1, {"diagnostics": True, "mean": "median", "rounds": 1}),
        ("scaffold", 3, {"upload": "int8", "rounds": 2}),
    ],
)
def test_images(pretending, name, stack, settings):
    model = moved(vision.build("resnet-nano", vision.ImageShape(16, 3, 10), norm="batch").model, pretending)
    data = images(30)
    task = ImageTask(data, data, device=pretending, crop_padding=2, flip=True)
    run(name, model, task, pretending, stack=stack, **settings)


@pytest.mark.parametrize(("kind", "stack"), [("classes", 3), ("tokens", 1)])
def test_texts(pretending, kind, stack, monkeypatch):
    monkeypatch.setattr("fedadamw.engine.prefetch.prefetch", iter)  # a mode is of one thread
    small = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words, classes = np.arange(300, dtype=np.int32) % 50, tuple("ab")
    data = Texts(words, np.ones(300, np.int8), np.arange(31) * 10, np.arange(30) % 2, classes)
    if kind == "classes":
        model = BertForSequenceClassification(BertConfig(**small, intermediate_size=16))
        task = TextTask(data, data, Form(0, 16, mask="4d", types=True), device=pretending)
    else:
        model = LlamaForCausalLM(LlamaConfig(**small, intermediate_size=16))
        task = LanguageTask(data, data, Form(0, 16), device=pretending)
    model = moved(model, pretending)
    run("fedadamw-mean-v", model, task, pretending, stack, group_by_length=True, rounds=1)


class Watch(TorchDispatchMode):
    """Counts, while local steps are taken, where the host waits for the device: numbers read, and copies."""

    def __init__(self):
        super().__init__()
        self.training, self.reads, self.copies = False, [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.training and function is torch.ops.aten._to_copy.default and "device" in kwargs:
            self.copies += args[0].device.type != torch.device(kwargs["device"]).type
        if self.training and function in WAITS and args[0].device.type == "pretend":
            self.reads.append(str(function))
        return function(*args, **kwargs)

    def note(self, name, value):
        def read(t):
            if self.training and t.device.type == "pretend":
                self.reads.append(name)
            return value(t) if callable(value) else value

        return read


WAITS = {torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default, torch.ops.aten.repeat_interleave.Tensor}


@pytest.fixture
def watch(pretending, monkeypatch):
    """A Watch that sees the engines' local rounds."""
    watch = Watch()
    for name in ("__float__", "__bool__", "__int__", "item", "tolist", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, watch.note(name, getattr(torch.Tensor, name)))

    def watched(method):
        def train(*args):
            watch.training = True
            try:
                return method(*args)
            finally:
                watch.training = False

        return train

    monkeypatch.setattr(Loop, "train_client", watched(Loop.train_client))
    monkeypatch.setattr(Stacked, "_train_group", watched(Stacked._train_group))
    with watch:
        yield watch


class OfImages(SmallTransformer):
    """Reads an image as the sequence of its pixels."""

    def forward(self, x):
        return super().forward(x.flatten(2).mT)


@pytest.fixture
def models():
    """Two equal models, made before tensors pretend."""
    return OfImages(), OfImages()


FAST = {("fedadamw-mean-v", 3)}  # the others: `make test-slow`


@pytest.mark.parametrize(
    ("name", "stack"),
    [
        pytest.param(name, stack, marks=[] if (name, stack) in FAST else [pytest.mark.slow])
        for name in CASES
        if name not in VARIANTS  # their operations are their neighbours'
        for stack in (1, 3)
    ],
)
def test_local_rounds_never_wait_for_the_device(models, pretending, watch, name, stack):
    copies = []
    for model, steps in zip(models, (2, 4), strict=True):
        moved(model, pretending)
        data = images(30, size=4, classes=3)
        task = ImageTask(data, data, device=pretending, crop_padding=2, flip=True)
        run(name, model, task, pretending, stack=stack, rounds=2, steps=steps)
        assert watch.reads == []
        copies.append(watch.copies)
        watch.copies = 0
    assert copies[0] == copies[1], "copies grow with the steps"
    assert copies[0] <= 2 * 3 * 3, "of two rounds and three clients: sample numbers, draws, weights"


class Sequences(Dataset):
    """Samples that are read one by one, as users' datasets are."""

    def __len__(self):
        return 30

    def __getitem__(self, sample):
        return torch.zeros(3, 4, 4), sample % 3


@pytest.fixture
def rows(device):
    """The samples, opened before tensors pretend."""
    return DatasetRows(Sequences(), default_collate, device)


@pytest.mark.parametrize("stack", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_dataset_is_read_without_waiting_for_the_device(models, rows, pretending, watch, stack):
    functions = check_functions(
        None, None, None, {"accuracy": lambda outputs, y: (outputs.argmax(1) == y).double().mean()}
    )
    run("fedavg", moved(models[0], pretending), PythonTask(rows, rows, functions, 10), pretending, stack, rounds=1)
    assert watch.reads == []
