"""Whether the clients of an experiment can be evaluated on their own held-out samples."""

from fedadamw.data.answers import AnswerTask
from fedadamw.data.partition import Partition
from fedadamw.engine.evaluation import choose_clients
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import check


def check_client_evaluation(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if settings contradict each other, before anything is loaded.

    remote: the clients are Flower's nodes.
    """
    partition, t = experiment.partition, experiment.training
    share, every = partition.held_out, t.client_evaluation
    told = f"training.client_evaluation={every}: no epsilon counts what the scores of nodes tell"
    instead = "set it to 0 with privacy, and have the model evaluated on the server's data"
    check(not (remote and every and experiment.privacy), f"{told}; {instead}")
    own = remote and partition.kind == "nodes"
    check(not (own and share), f"partition.held_out={share:g}: nodes with data of their own have it in --node-config")
    given = share or own or experiment.data.task == PYTHON
    check(bool(given or not every), f"training.client_evaluation={every} needs partition.held_out, such as 0.2")
    alone = t.evaluate_clients is not None and not every
    check(not alone, f"training.evaluate_clients={t.evaluate_clients} needs training.client_evaluation, such as 10")
    many = t.evaluate_clients is not None and t.evaluate_clients > partition.clients and partition.kind != "column"
    check(not many, f"training.evaluate_clients={t.evaluate_clients} is more than the {partition.clients} clients")


def check_held_out(experiment: Experiment, task: Task, held_out: Partition) -> None:
    """Raise InputError if the clients' held-out samples cannot be evaluated as training.evaluate_clients says."""
    t, there = experiment.training, int((held_out.sizes > 0).sum())
    if not t.client_evaluation:
        return
    why = ", or has two samples to hold one out" if experiment.partition.held_out else ""
    check(there > 0, f"training.client_evaluation: no client has held-out samples{why}")
    asked = t.evaluate_clients
    check(asked is None or asked <= there, f"training.evaluate_clients={asked}: {there} clients have held-out samples")
    if isinstance(task, AnswerTask):
        for samples in choose_clients(held_out, experiment.seed, asked).values():
            task.ask(samples.tolist())
