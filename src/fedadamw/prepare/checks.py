"""Check that settings which are each valid do not contradict each other, before anything is loaded."""

from fedadamw.algorithms import registry
from fedadamw.algorithms.outer import check_takes_outer_step
from fedadamw.engine.robust import check_robust
from fedadamw.engine.simulate import NOT_THE_MEAN
from fedadamw.prepare import images, texts
from fedadamw.prepare.base import check_base, check_shards
from fedadamw.prepare.buffered import check_buffered
from fedadamw.prepare.client_evaluation import check_client_evaluation
from fedadamw.prepare.described import check_described
from fedadamw.prepare.device import check_device
from fedadamw.prepare.devices import check_devices
from fedadamw.prepare.nodes import check_remote
from fedadamw.prepare.normalize import check_normalize
from fedadamw.prepare.personal import check_personal
from fedadamw.prepare.privacy import check_privacy
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def check_settings(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if settings that are each valid contradict each other, before anything is loaded.

    remote: the clients are Flower's nodes.
    """
    t, data, clients = experiment.training, experiment.data, experiment.partition.clients
    check_device("device", experiment.device)
    check_described(experiment)
    registry.check_startable(experiment.algorithm)
    if data.task != PYTHON:
        (texts if data.is_text else images).check_named(experiment)
    check_base(experiment)
    at_once = t.batch_size if t.micro_batch is None else min(t.batch_size, t.micro_batch)
    check(not data.packing or at_once > 1, "data.packing=true: a micro-batch of one text has nothing to pack")
    selects = data.validation or data.max_train
    check(data.resident or not selects, "data.resident=false takes all samples: no data.validation, no data.max_train")
    by_column = experiment.partition.kind == "column"  # the number of clients is that of the column's values
    check(
        t.clients_per_round <= clients or by_column,
        f"clients_per_round={t.clients_per_round} is more than the {clients} clients of the partition",
    )
    check_robust(t.mean, t.byzantine, t.clients_per_round, "training.clients_per_round")
    check_buffered(experiment)
    lora, algorithm = experiment.lora, registry.ALGORITHMS[experiment.algorithm_name]
    in_turn = lora is not None and lora.aggregate == "alternate"
    check(not (in_turn and t.diagnostics), "training.diagnostics compares rounds of one kind: not with alternate")
    if lora is not None and lora.changes_base:
        check(algorithm.adds_mean, f"lora.aggregate={lora.aggregate!r} {NOT_THE_MEAN}")
        check(t.outer is None, f"lora.aggregate={lora.aggregate!r} takes the clients' mean as it is: no training.outer")
    if t.outer is not None:
        server_lr = experiment.algorithm.get("server_lr", 1.0)
        check_takes_outer_step(experiment.algorithm_name, adds_mean=algorithm.adds_mean, server_lr=server_lr)
    check_shards(experiment)
    check_privacy(experiment, remote=remote)
    check_normalize(experiment, remote=remote)
    check_personal(experiment, remote=remote)
    check_devices(experiment, remote=remote)
    check_client_evaluation(experiment, remote=remote)
    if remote:
        check_remote(experiment)
    else:
        on_nodes = experiment.partition.kind == "nodes"
        check(not on_nodes, "partition.kind='nodes' is the data on Flower's nodes: it cannot be simulated")
