"""Tasks that go wrong, and the memory of a round."""

import json
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.simulate import Simulation
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Evaluation
from fedadamw.vector import Vector
from support.sequences import SequenceTask


class PoisonedTask(SequenceTask):
    """Clients that hold one of `poison` get a loss that is not a number."""

    poison = frozenset[int]()

    def batch(self, samples, drawn):
        inputs, labels = super().batch(samples, drawn)
        if self.poison & set(samples.tolist()):
            inputs = inputs * float("nan")
        return inputs, labels


def peak_memory(clients_per_round: int) -> None:
    """Prints the peak resident memory of one round; run in a process of its own."""
    torch.set_num_threads(1)
    model = nn.Linear(2_000_000, 1, bias=False)  # 8 MB a vector
    generator = np.random.default_rng(0)
    sizes = generator.integers(4, 401, 1000)
    ends = np.cumsum(sizes)
    clients = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    algorithm = registry.make("fedadamw", registry.settings_of("fedadamw"), Blocks.of(model))
    training = TrainingSettings(rounds=1, clients_per_round=clients_per_round, steps=1, batch_size=16)
    record = Simulation.in_process(model, algorithm, WideTask(), clients, training).step()
    assert record.clients == clients_per_round
    status = Path("/proc/self/status").read_text()  # ru_maxrss would inherit the peak of the process that started it
    print(json.dumps(int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) // 1024))


class WideTask:
    """One sample is one number; the model is one wide vector: memory is the model's, not the data's."""

    def draw(self, count, generator):
        return torch.zeros(count, 0)

    def batch(self, samples, drawn):
        return (samples.float(),)

    def losses(self, model: nn.Module, batch) -> Tensor:
        weight: Vector = model.weight
        return weight.square().mean() * batch[0]

    held_out, resident = 1, True

    def outputs(self, model, start, stop):
        return torch.zeros(1, 1)

    def score(self, outputs):
        return Evaluation(0.0, {})
