"""What it costs to evaluate clients on their own held-out samples."""

from typing import Any, NamedTuple

from fedadamw.plan.data_shape import DataShape
from fedadamw.settings.experiment import Experiment

PASSES = 3  # forward passes that a local step's work is worth for each sample: backward is two


class Evaluated(NamedTuple):
    """The evaluations of clients in a run."""

    times: int
    clients: int | None  # each time; None if their number is not known before the data are read
    samples: int | None  # of all of them
    share: float | None  # of the work of local training, over the whole run
    tuning: int = 0  # local steps that tune the final model for each client, which is then evaluated once more

    def describe(self) -> str:
        """Return it in words."""
        what = (
            "clients' own held-out samples" if self.clients is None else f"held-out samples of {self.clients:,} clients"
        )
        count = "" if self.samples is None else f"{self.samples:,} "
        cost = "" if self.share is None else f", about {self.share:.1%} of the work of training"
        tuning = f", then {self.tuning:,} steps of tuning each" if self.tuning else ""
        return f"{count}{what}, {self.times:,} times{tuning}{cost}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return self._asdict()


def count_evaluated(experiment: Experiment, data: DataShape) -> Evaluated | None:
    """Return what evaluating and tuning the clients takes; None without training.client_evaluation."""
    t, partition = experiment.training, experiment.partition
    if not t.client_evaluation:
        return None
    steps = 0 if experiment.personal is None else experiment.personal.finetune
    times = -(-t.rounds // t.client_evaluation) + (steps > 0)
    known = None if partition.kind == "column" else partition.clients
    clients = t.evaluate_clients or known
    if data.samples is None or known is None:
        whole = None if data.samples is None or t.evaluate_clients else round(data.samples * partition.held_out)
        return Evaluated(times, clients, whole, None, steps)
    assert clients is not None
    each = data.samples / known
    samples = round(clients * each * partition.held_out)
    own = max(round(each * (1 - partition.held_out)), 1)  # samples that a client trains on
    trained = t.rounds * t.clients_per_round * _samples_per_round(experiment, own)
    tuned = clients * steps * min(t.batch_size, own)
    return Evaluated(times, clients, samples, (times * samples / PASSES + tuned) / trained, steps)


def _samples_per_round(experiment: Experiment, own: int) -> float:
    """Samples that a client with `own` trains on in a round, on average over classes of devices."""
    t, devices = experiment.training, experiment.devices
    classes = () if devices is None else devices.classes.values()
    return sum(one.share * t.samples_per_round(own, one.steps) for one in classes) or t.samples_per_round(own)
