"""Loss and metrics of a trained model on held-out samples."""

from typing import TypeVar

import torch

from fedadamw.data.image_decoding import OWN_SIZE
from fedadamw.data.images import Images
from fedadamw.data.texts import Texts
from fedadamw.engine.client import autocast
from fedadamw.models.text import Text
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import select_device
from fedadamw.prepare.simulation import samples_of
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Evaluation, Task
from fedadamw.trained.load import Trained
from fedadamw.validation import check

Held = TypeVar("Held", Texts, Images)


def evaluate(trained: Trained) -> tuple[Evaluation, int]:
    """Loss and metrics on the held-out samples that the experiment names, and how many these are."""
    experiment, built = trained.experiment, trained.built
    device = select_device(experiment)
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    held_out, task = _held_out(trained, device)
    model = built.model.to(device).eval()
    with torch.no_grad(), autocast(experiment.training, device):
        return task.score(task.outputs(model, 0, task.held_out)), len(held_out)


def _picked(experiment: Experiment, found: Held) -> Held:
    """As many of the held-out samples as data.max_test says."""
    most = experiment.data.max_test
    if not most or most >= len(found):
        return found
    return found.select(numpy_generator(experiment.seed, Purpose.SPLIT).permutation(len(found))[:most])


def _held_out(trained: Trained, device: torch.device) -> tuple[Texts | Images, Task]:
    experiment, built, about = trained.experiment, trained.built, trained.about
    own = None if trained.other_data else samples_of(experiment)[1]
    if isinstance(built, Text):
        found = _picked(experiment, texts.held_out(experiment, about)) if own is None else own
        assert isinstance(found, Texts)
        same = list(found.classes) == list(about["classes"]) and (found.edges is None) == (about["edges"] is None)
        check(same, "the run's classes were numbered otherwise, by an earlier version: evaluate it with --data")
        return found, texts.task_of(experiment, built.form, found, found, device)
    seen = _picked(experiment, images.held_out(experiment, about)) if own is None else own
    assert isinstance(seen, Images)
    same = (list(seen.pixels.shape[1:]), seen.size_from) == (list(about["shape"]), about.get("fit", OWN_SIZE))
    check(same, "the run's pictures were kept in another form, by an earlier version: evaluate it with --data")
    return seen, images.task_of(experiment, built, seen, seen, device, about)
