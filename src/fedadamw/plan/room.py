"""The memory of the device that a run is planned for."""

from typing import NamedTuple

import torch

from fedadamw.machine.memory import free_bytes, total_bytes, used_bytes
from fedadamw.prepare.device import uses_gpu
from fedadamw.settings.experiment import Experiment

GB = 10**9


class Room(NamedTuple):
    """A device, and its memory in bytes; None if it is not known."""

    device: torch.device
    name: str
    total: int | None
    free: int | None  # that a run started now may use
    own: int  # what each process of the run uses for Python and libraries; 0 on a GPU, where `free` is without it


def find_room(experiment: Experiment, given_gb: float | None = None, *, ranks: int = 1) -> Room:
    """Return the device of the experiment and its memory.

    given_gb: of a device that need not be here. ranks: several, on GPUs, are other processes: this one leaves the GPU
    alone, and what is free is taken to be all.
    """
    device = torch.device("cuda" if uses_gpu(experiment) else "cpu")
    own = used_bytes() if device.type == "cpu" else 0
    if given_gb is not None:
        memory = round(given_gb * GB)
        return Room(device, f"{device.type} with {given_gb:g} GB", memory, memory, own)
    if device.type == "cpu":
        free = free_bytes()
        return Room(device, "cpu", total_bytes(), None if free is None else free + own, own)
    return _find_gpu(experiment, ranks)


def _find_gpu(experiment: Experiment, ranks: int) -> Room:
    number = int(experiment.device.partition(":")[2] or 0)
    device = torch.device("cuda", number)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        return Room(device, f"{device}, which is not here", None, None, 0)
    about = torch.cuda.get_device_properties(device)
    name, total = f"{device} ({about.name})", about.total_memory
    if ranks > 1:
        return Room(device, name, total, total, 0)
    try:
        return Room(device, name, total, torch.cuda.mem_get_info(device)[0], 0)
    except RuntimeError:  # another process has it alone: the run will say so
        return Room(device, name, total, None, 0)
