"""Whether differential privacy of samples holds for a model and the data that it learns."""

import warnings

import numpy as np

from fedadamw.data.partition import Partition
from fedadamw.data.samples import Samples
from fedadamw.data.texts import Texts
from fedadamw.engine.private_gradient import check_separate
from fedadamw.prepare.problem import Problem
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def check_private_problem(
    experiment: Experiment, problem: Problem, train: Samples | None, partition: Partition
) -> None:
    """Raise InputError if privacy of samples would not hold for this model and these data.

    train: None if they are only pretended.
    """
    if experiment.privacy is None or experiment.privacy.unit != "sample":
        return
    model, _, facts = problem
    check_separate(model)
    check(
        "shape" not in facts or "mean" in facts,
        "data.mean is not set, so that nodes would send sums of their pixels: set data.mean and data.std with "
        "privacy.unit=sample",
    )
    if train is None:
        return
    numbers, counts = np.unique(partition.samples, return_counts=True)
    often = numbers[counts > 1]
    twice = f"sample {often[:1].tolist()} is there {counts.max(initial=1)} times, of one client or of several"
    check(not len(often), f"{twice}: give each once with privacy.unit=sample")
    if isinstance(train, Texts) and train.rows is not None and (more := len(train) - len(np.unique(train.rows))):
        warnings.warn(
            f"texts were divided into {more:,} more samples: privacy.unit=sample is of each sample, not of a text",
            stacklevel=2,
        )


def warn_of_start(experiment: Experiment, name: str) -> None:
    """Warn that epsilon is of this run alone, if it starts from another one's model, which may know the same samples.

    name: of the run that it starts from.
    """
    if experiment.privacy is not None:
        warnings.warn(
            f"model.name={name!r} is a run: what it told of the same samples is not in this run's epsilon; the two add "
            "up, and without privacy there is no bound",
            stacklevel=3,
        )
