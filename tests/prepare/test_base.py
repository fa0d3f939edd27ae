"""Warnings about the type that a model computes in."""

import pytest
import torch
from torch import nn

from fedadamw.machine.devices import Cpu
from fedadamw.prepare import base
from fedadamw.settings.load import load

IN_FLOAT32, IN_BFLOAT16 = load("digits"), load("digits", ["training.precision=bf16"])
CPU = torch.device("cpu")


def set_instructions(monkeypatch, bfloat16: bool | None) -> None:
    monkeypatch.setattr(base, "describe_cpu", lambda: Cpu("a processor", 2, 2, 8.0, bfloat16))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("experiment", "module", "instead"),
    [
        (IN_BFLOAT16, nn.Linear(1, 1), "training.precision=float32"),
        (IN_FLOAT32, nn.Linear(1, 1).bfloat16(), "model.dtype=float32"),
    ],
    ids=["autocast", "base"],
)
def test_bfloat16_without_instructions_for_it_is_said_to_be_slow(monkeypatch, experiment, module, instead):
    set_instructions(monkeypatch, bfloat16=False)
    with pytest.warns(UserWarning, match=f"no instructions for bfloat16.*; set {instead}$"):
        base.warn_if_emulated(experiment, module, CPU)
    base.warn_if_emulated(IN_FLOAT32, nn.Linear(1, 1), CPU)
    for known in (True, None):
        set_instructions(monkeypatch, bfloat16=known)
        base.warn_if_emulated(experiment, module, CPU)
