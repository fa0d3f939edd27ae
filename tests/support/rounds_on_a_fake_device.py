"""Rounds and evaluations on a device that only pretends: no operation mixes its tensors with those of the CPU.

A private backend of torch, with tensors that have a device and no numbers, stands for a GPU.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.text_tasks import LanguageTask, TextTask
from fedadamw.data.texts import Texts
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.text import Form
from fedadamw.settings.training import TrainingSettings
from support.cases import CASES
from support.image_sets import images


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
    training = TrainingSettings(clients_per_round=3, steps=2, batch_size=4, lr=0.01, **settings)
    clients = [np.arange(0, 3), np.arange(3, 20), np.arange(20, 30)]
    sim = Simulation.in_process(model, algorithm, task, clients, training, stack=stack)
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
    for engine in ("loop", "stacked"):
        monkeypatch.setattr(f"fedadamw.engine.{engine}.prefetch", iter)  # a mode is of one thread
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
