"""Choose the device that a run trains on."""

import os
import re

import torch

from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check


def uses_gpu(experiment: Experiment) -> bool:
    """Whether the experiment will run on a GPU; allocates nothing there."""
    if experiment.device == "auto":
        return torch.cuda.is_available()
    return experiment.device != "cpu"


def check_device(setting: str, given: object) -> None:
    """Raise InputError unless `given` names a CPU or a CUDA device."""
    known = isinstance(given, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", given)
    check(
        bool(known), f"{setting}={given!r} is not a device to train on; use one of auto, cpu, cuda, cuda:0, cuda:1, ..."
    )


def select_device(experiment: Experiment, name: str | None = None) -> torch.device:
    """Set up and return the device `name`, by default the experiment's; raise InputError if it does not exist.

    With precision float32, cuDNN's convolutions do not round to TF32 (10 of 23 bits), which is torch's default.
    """
    torch.backends.cudnn.allow_tf32 = experiment.training.precision != "float32"
    given = name or experiment.device
    check_device("device", given)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if given == "cpu" or (given == "auto" and not gpus):
        return torch.device("cpu")
    number = int(given.partition(":")[2] or os.environ.get("LOCAL_RANK", "0"))  # set by torchrun: one GPU per rank
    available = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
    check(number < gpus, f"device={given!r}: torch finds no such GPU here; available: {available}")
    device = torch.device("cuda", number)
    try:
        torch.zeros(1, device=device).item()
        torch.cuda.set_device(device)
    except RuntimeError as error:
        raise InputError(f"device={given!r}: {str(error).splitlines()[0]}") from None
    return device
