"""What a run chooses where its settings leave it open: how local steps are done, how many clients train at once."""

from collections.abc import Mapping

import torch

from fedadamw.engine.step import SAVED_S, Kind, compiling_pays
from fedadamw.settings.experiment import Experiment


def choose_step(
    experiment: Experiment, d: int, samples: float, device: torch.device, saved: Mapping[str, float] = SAVED_S
) -> Kind:
    """Return how local steps of a new run on d numbers are done, with so many samples a client; see Prepared."""
    t = experiment.training
    if experiment.compile != "auto":
        return "compiled" if experiment.compile == "on" else "fused"
    steps: float = t.steps or -(-int(samples) * (t.epochs or 1) // t.batch_size)
    if experiment.devices is not None:
        steps = experiment.devices.mean_steps(steps)
    total = t.rounds * t.clients_per_round * int(steps)
    return "compiled" if compiling_pays(d, total, device, saved) else "fused"


def default_stack(experiment: Experiment, device: torch.device) -> int:
    """Return how many clients train at once by default: one on a CPU, in shards or quantised, else all of a round.

    One, too, if the gradients of samples are computed one after the other.
    """
    one = device.type == "cpu" or experiment.shards > 1 or experiment.model.quantize != "none"
    privacy = experiment.privacy
    one |= privacy is not None and privacy.unit == "sample" and experiment.training.gradient_checkpointing
    return 1 if one else experiment.training.clients_per_round
