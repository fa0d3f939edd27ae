"""Prefetched batches: the same, in the same order, errors included."""

import itertools
import threading

import numpy as np
import pytest
import torch
from support.image_sets import images

from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.engine.prefetch import DEPTH, prefetch
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.loading import build_seeded
from fedadamw.settings.training import TrainingSettings


def test_items_are_prefetched_in_order_and_at_most_depth_ahead():
    made = []

    def items():
        for i in range(20):
            made.append((i, threading.current_thread()))
            yield i

    found = []
    for i in prefetch(items()):
        found.append(i)
        assert len(made) <= i + 2 + DEPTH
    assert found == list(range(20))
    assert threading.current_thread() not in {thread for _, thread in made}


def test_an_error_is_raised_after_the_items_before_it():
    def items():
        yield from (1, 2)
        raise OSError("the disk is gone")

    found = prefetch(items())
    assert list(itertools.islice(found, 2)) == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


@pytest.mark.parametrize("stack", [1, 3])
def test_training_from_disk_matches_training_from_memory(stack, tmp_path):
    data = images(60)
    path = tmp_path / "pixels.npy"
    np.save(path, data.pixels)
    on_disk = type(data)(np.load(path, mmap_mode="r"), data.labels, data.classes)

    def run(train, *, resident):
        built = build_seeded(lambda: vision.build("vit-nano", vision.ImageShape(32, 3, 10)), 0)
        task = ImageTask(train, data, device=torch.device("cpu"), crop_padding=4, flip=True, resident=resident)
        clients = [np.arange(0, 9), np.arange(9, 40), np.arange(40, 60)]
        training = TrainingSettings(rounds=2, clients_per_round=3, steps=3, batch_size=10, lr=0.01)
        sim = Simulation.in_process(
            built.model, FedAdamW(blocks=Blocks.of(built.model)), task, clients, training, stack=stack
        )
        return [record.train_loss for record in sim.rounds()]

    assert run(on_disk, resident=False) == run(data, resident=True)
