"""Evaluate a trained model on held-out samples."""

from typing import TypeVar, cast

import torch

from fedadamw.data.image_decoding import OWN_SIZE
from fedadamw.data.images import Images
from fedadamw.data.texts import Texts
from fedadamw.engine.workspace import autocast
from fedadamw.models.quantized import place_on
from fedadamw.models.text import TextModel
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import select_device
from fedadamw.prepare.problem import ImageFacts, TextFacts
from fedadamw.prepare.samples import load_samples
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Evaluation, Task
from fedadamw.trained.load import Trained
from fedadamw.validation import check

SplitT = TypeVar("SplitT", Texts, Images)


def evaluate(trained: Trained) -> tuple[Evaluation, int]:
    """Evaluate a model on the held-out samples that its experiment names; also returns how many they are."""
    experiment = trained.experiment
    device = select_device(experiment)
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    held_out, task = _load_held_out(trained, device)
    model = place_on(trained.model, device).eval()
    with torch.no_grad(), autocast(experiment.training, device):
        return task.score(task.outputs(model, 0, task.held_out)), len(held_out)


def _load_held_out(trained: Trained, device: torch.device) -> tuple[Texts | Images, Task]:
    """Load the held-out samples, and their task on `device`."""
    experiment, pretrained, built = trained.experiment, trained.pretrained, trained.built
    described = experiment.data.classes is not None and not trained.other_data
    check(not described, "the run's server had no data (data.classes): name data to evaluate it on with --data")
    split = None if trained.other_data else load_samples(experiment, pretrained)[1]
    if isinstance(built, TextModel):
        facts = cast("TextFacts", trained.facts)
        text = _draw(experiment, texts.load_test(experiment, pretrained, facts)) if split is None else split
        assert isinstance(text, Texts)
        same = list(text.classes) == list(facts["classes"]) and (text.edges is None) == (facts["edges"] is None)
        check(same, "the data's classes are not those of the run: evaluate it on other data with --data")
        return text, texts.build_task(experiment, built.form, text, text, device, pretrained)
    of_images = cast("ImageFacts", trained.facts)
    image = _draw(experiment, images.load_test(experiment, pretrained, of_images)) if split is None else split
    assert isinstance(image, Images)
    same = (list(image.pixels.shape[1:]), image.size_from) == (
        list(of_images["shape"]),
        of_images.get("fit", OWN_SIZE),
    )
    check(same, "the data's images are not in the run's pixel format: evaluate it on other data with --data")
    return image, images.build_task(experiment, built, image, image, device, of_images)


def _draw(experiment: Experiment, split: SplitT) -> SplitT:
    """Draw as many of the held-out samples as data.max_test says."""
    most = experiment.data.max_test
    if not most or most >= len(split):
        return split
    return split.select(numpy_generator(experiment.seed, Purpose.SPLIT).permutation(len(split))[:most])
