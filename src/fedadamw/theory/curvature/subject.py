"""What is measured: a run's model, at its first or last weights, and its training samples without augmentation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from fedadamw.data.images import Images
from fedadamw.data.text_tasks import LanguageTask, TextTask
from fedadamw.data.texts import Texts
from fedadamw.models.quantized import place_on
from fedadamw.models.text import TextModel
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import select_device
from fedadamw.prepare.problem import ImageFacts
from fedadamw.prepare.samples import load_samples
from fedadamw.prepare.start import build_model, open_start
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Batch, Model, Task
from fedadamw.trained.load import Overrides, Trained, open_trained
from fedadamw.validation import InputError, check

At = Literal["start", "end"]
Report = Callable[[str, int, int], None]  # (what, done, in all)


class Subject(NamedTuple):
    """A model in evaluation mode, its task, and how many training samples this has."""

    model: nn.Module
    task: Task
    samples: int
    seed: int = 0
    batch_size: int = 50  # of a local step

    def draw(self, count: int) -> Tensor:
        """Draw the numbers of `count` training samples, all of them if there are fewer; the same at each call."""
        order = numpy_generator(self.seed, Purpose.MEASURED).permutation(self.samples)
        return torch.from_numpy(order[:count])

    def batches(self, samples: Tensor, size: int) -> Iterator[Batch]:
        """Yield the training samples with these numbers in batches of at most `size`."""
        place = next(self.model.parameters()).device if self.task.resident else torch.device("cpu")
        for part in samples.split(size):
            drawn = self.task.draw(len(part), torch.Generator())
            yield self.task.batch(part.to(place), drawn.to(place))


def open_subject(path: Path, overrides: Overrides = (), *, at: At = "end") -> Subject:
    """Open a run's model, at its `start` or at the `end`, and its training samples.

    Raises InputError if the folder holds no run with a checkpoint, or its data cannot be read.
    """
    check(RunFolder(path).started, f"{path} holds no run (no config.yaml)")
    trained = open_trained(path, overrides)
    experiment = _without_augmentation(trained.experiment)
    device = select_device(experiment)
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    model = trained.model if at == "end" else _first_model(trained)
    task, samples = _build_task(trained, experiment, device)
    model = place_on(model, device).eval()
    return Subject(model, task, samples, experiment.seed, experiment.training.batch_size)


def _without_augmentation(experiment: Experiment) -> Experiment:
    data = experiment.data.model_copy(update={"crop_padding": 0, "flip": False})
    return experiment.model_copy(update={"data": data})


def _first_model(trained: Trained) -> nn.Module:
    """Build the model with the weights that the run began with, which come from its seed or its start."""
    experiment = trained.experiment
    return build_model(experiment, trained.pretrained, trained.facts, open_start(experiment)).model


def _build_task(trained: Trained, experiment: Experiment, device: torch.device) -> tuple[Task, int]:
    """Return the task of the run's training samples on `device`, and how many they are."""
    train, _ = load_samples(experiment, trained.pretrained)
    same = list(train.classes) == list(trained.facts["classes"])
    check(same, "the data's classes are not those of the run")
    built = trained.built
    if isinstance(built, TextModel):
        assert isinstance(train, Texts)
        return texts.build_task(experiment, built.form, train, train, device, trained.pretrained), len(train)
    assert isinstance(train, Images)
    facts = cast("ImageFacts", trained.facts)
    check(list(train.pixels.shape[1:]) == list(facts["shape"]), "the data's images are not in the run's pixel format")
    return images.build_task(experiment, built, train, train, device, facts), len(train)


def predict(task: Task, model: Model, batch: Batch) -> Tensor:
    """Return the model's outputs for a batch, (n, c): logits of classes, or numbers with c = 1.

    Raises InputError for a language model, whose outputs are as many as it has tokens in a text, times its vocabulary.
    """
    if isinstance(task, LanguageTask):
        raise InputError(
            "a language model has too many outputs for its Gauss-Newton matrix; theory spectrum has --matrix hessian"
        )
    *inputs, _ = batch
    out = task.form.logits(model, inputs) if isinstance(task, TextTask) else model(*inputs)
    outputs: Tensor = out if isinstance(out, Tensor) else out.logits
    return outputs


def check_finite(numbers: Tensor) -> None:
    """Raise InputError if derivatives of the loss are not finite numbers, as after a run that diverged."""
    check(bool(numbers.isfinite().all()), "the loss is not finite at these weights: did the run diverge?")


def predicts_numbers(task: Task) -> bool:
    """Whether the loss is the squared error of a number, not the cross-entropy of classes."""
    return bool(getattr(task, "numbers", False))
