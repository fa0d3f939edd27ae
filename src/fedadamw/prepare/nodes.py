"""Settings that contradict Flower's nodes."""

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.robust import check_robust
from fedadamw.engine.workspace import Workspace
from fedadamw.prepare.architecture import is_run
from fedadamw.prepare.buffered import BUFFERED
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def check_remote(experiment: Experiment) -> None:
    """Raise InputError if settings contradict each other or Flower's nodes."""
    f, t, name, lora = experiment.federation, experiment.training, experiment.model.name, experiment.lora
    check(lora is None or lora.ranks is None, "lora.ranks needs simulated clients, not Flower's nodes")
    check(not is_run(name), f"model.name={name!r}: nodes have no run of the server's; give the folder of its export")
    check(experiment.shards == 1, f"shards={experiment.shards}: a node is one process")
    lossy = t.upload in ("int8", "top-k")
    check(
        not (t.buffered and lossy),
        f"training.upload={t.upload} keeps what it loses on each node until the next round, and {BUFFERED} has none: "
        "use float32 or bfloat16",
    )
    check(not t.diagnostics, "training.diagnostics needs simulated clients, not Flower's nodes")
    check(
        f.sample_counts or t.weighting == "uniform", "federation.sample_counts=false needs training.weighting=uniform"
    )
    given = f"training.client_evaluation={t.client_evaluation} needs federation.sample_counts=true"
    tells = "nodes answer sums, which tell how many samples they are over"
    check(f.sample_counts or not t.client_evaluation, f"{given}: {tells}")
    check_robust(t.mean, t.byzantine, f.quorum_of(t.clients_per_round), "federation.quorum")
    own = experiment.partition.kind == "nodes"
    check(not own or experiment.data.every == 1, "data.every: nodes use every row of their own data")
    privacy = experiment.privacy
    if own and privacy is not None and privacy.unit == "sample":
        unseen = f"privacy.budget={privacy.budget}: the server cannot see to it, as only nodes know their samples"
        check(privacy.budget is None, f"{unseen}; have nodes set privacy-epsilon in --node-config")


def check_no_memory(experiment: Experiment, algorithm: AnyAlgorithm, workspace: Workspace) -> None:
    """Raise InputError if nodes of a buffered run would keep a memory, whose order goes by rounds."""
    if not experiment.training.buffered:
        return
    down = algorithm.broadcast(algorithm.server_init(workspace.shared.clone()))
    check(
        algorithm.client_init(down) == (),
        f"{BUFFERED}: {experiment.algorithm_name} keeps a memory on each node, which goes by rounds; over Flower use "
        "one of the algorithms that keep none",
    )
