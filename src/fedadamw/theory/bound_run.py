"""Reads from a run what its bound needs: curvature, distance, settings."""

from pathlib import Path

from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.theory.bound import Run
from fedadamw.theory.curvature.moments import second_moment
from fedadamw.theory.curvature.subject import Report, open_subject
from fedadamw.trained.load import Overrides
from fedadamw.validation import check
from fedadamw.vector import trainable

ADAMW = ("fedadamw", "local-adamw")  # whose local steps are AdamW's


def read_run(path: Path, samples: int, overrides: Overrides, report: Report) -> Run:
    """Return a run's curvature from the gradients of so many training samples, one by one, and its settings.

    Raises InputError if the folder holds no run with a checkpoint, or a run whose local steps are not AdamW's.
    """
    folder = RunFolder(path)
    check(folder.started, f"{path} holds no run (no config.yaml)")
    experiment = load(str(folder.config))
    name, decay = experiment.algorithm_name, experiment.algorithm.get("weight_decay")
    check(name in ADAMW, f"{path}: is a run of {name}; the bound holds for AdamW's steps, those of {', '.join(ADAMW)}")
    assert isinstance(decay, float)
    subject = open_subject(path, overrides)
    count = min(samples, subject.samples)
    v = second_moment(subject._replace(batch_size=1), count, lambda done: report("gradients", done, count))
    distance = sum(float(p.detach().double().square().sum()) for p in trainable(subject.model).values())
    return Run(
        root_h=v.sqrt().cpu().numpy(),
        distance=distance,
        samples=subject.samples,
        lr=experiment.training.lr,
        batch_size=min(experiment.training.batch_size, subject.samples),
        weight_decay=decay,
    )
