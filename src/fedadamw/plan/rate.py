"""How long a round takes, by the rounds of a run that differs only in how much is trained."""

from collections.abc import Sequence
from statistics import mean

from fedadamw.settings.experiment import Experiment

AMOUNTS = {"rounds", "clients_per_round", "steps", "epochs", "batch_size"}  # of training: they change how much


def seconds_a_round(experiment: Experiment, measured: Experiment, seconds: Sequence[float]) -> float | None:
    """Return the seconds of a round of `experiment`, None if `measured`, whose rounds took `seconds`, is another job.

    They are in proportion to the samples that clients train on; evaluations are taken to be as frequent.
    """
    if not seconds or _job(experiment) != _job(measured):
        return None
    return mean(seconds) * _amount(experiment) / _amount(measured)


def _job(experiment: Experiment) -> tuple[object, ...]:
    """What a sample's time depends on; with epochs, who has how many samples too."""
    t = experiment.training
    parts = (experiment.model, experiment.lora, experiment.data, experiment.algorithm, experiment.device)
    machine = (experiment.threads, experiment.stack, experiment.shards)
    devices = experiment.devices
    by_device = devices is not None and devices.sets_steps  # then only clients are in proportion
    work = (t.steps, t.epochs, t.batch_size) if by_device else ()
    whose = None if t.steps and not by_device else experiment.partition
    return *parts, *machine, devices, *work, t.model_dump(exclude=AMOUNTS | {"lr"}), whose


def _amount(experiment: Experiment) -> float:
    """Samples that a round trains on, or with epochs, a number in proportion to them."""
    t = experiment.training
    return t.clients_per_round * (t.steps * t.batch_size if t.steps else float(t.epochs or 1))
