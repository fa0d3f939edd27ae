"""One client's own model, from a run's folder: what is shared, with the numbers that this client keeps."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from torch import Tensor, nn

from fedadamw import checkpoint
from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.codecs import make_codec
from fedadamw.engine.ledger import TENSOR_NAME as LEDGER
from fedadamw.engine.own_models import has_own_models, own_model
from fedadamw.engine.store import COUNT, InMemory, OnDisk
from fedadamw.engine.uploads import Uploads
from fedadamw.engine.workspace import Workspace
from fedadamw.models.lora.means import Folding
from fedadamw.prepare.personal import build_parts
from fedadamw.prepare.simulation import build_algorithm
from fedadamw.prepare.start import check_same_layout
from fedadamw.report.client_scores import NAME, NO_SCORES, read_lines
from fedadamw.report.metrics import TUNED
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import check


class ClientFacts(TypedDict):
    """Whose model it is, and its last score on this client's own held-out samples."""

    client: int
    round: int | None  # of the score; None if there is none
    samples: int | None
    scores: dict[str, float | None]


class Run(NamedTuple):
    """What a run's folder says."""

    experiment: Experiment
    clients: int  # how many
    tensors: Mapping[str, Tensor]  # of the checkpoint
    round: int
    layout: str  # fingerprint of the model


def open_client(folder: RunFolder, model: nn.Module, client: int) -> ClientFacts:
    """As `load_client`, of the run in `folder`, into a model that has been trained; the client must have taken part."""
    tensors, state = checkpoint.read(folder.state, "checkpoint")
    experiment, manifest = load(str(folder.config)), folder.read_manifest()
    run = Run(experiment, manifest["partition"]["clients"], tensors, state["round"], manifest["model"]["layout"])
    return load_client(folder.path, run, model, client, begun=True)


def load_client(path: Path, run: Run, model: nn.Module, client: int, *, begun: bool = False) -> ClientFacts:
    """Put the model of `client` into `model`, and return what is known of it.

    begun: `model` is not as the run began, so that a client which has not taken part yet has no model.
    Raises InputError if the clients of the run at `path` have no models of their own, or there is no such client.
    """
    experiment, tensors = run.experiment, run.tensors
    given = f"client {client}" if begun else f"--client {client}"
    check(0 <= client < run.clients, f"{given}: the clients of {path} are 0 to {run.clients - 1}")
    workspace, algorithm = build_parts(experiment, model, build_algorithm)
    check(has_own_models(algorithm), f"{given}: all clients of {path} have one model")
    check(LEDGER not in tensors, f"{given}: nodes keep their parameters; they are not in {path}")
    check_same_layout(workspace.layout, run.layout)
    memory = _read_memory(path, run, workspace, algorithm, client)
    check(memory is not None or not begun, f"client {client} has not taken part, and has no model of its own")
    if memory is None:
        warnings.warn(f"{given} has not taken part: its own parameters are those that the run began with", stacklevel=2)
    workspace.load(*own_model(algorithm, tensors["server.x"], tensors["statistics"], memory))
    workspace.release()
    if tensors["base"].numel():
        Folding(model).load(tensors["base"])
    return _find_scores(path, client, run.round)


def _read_memory(path: Path, run: Run, workspace: Workspace, algorithm: AnyAlgorithm, client: int) -> AnyState | None:
    """Return what a client kept after the checkpoint's round, None if it had not taken part."""
    training, tensors = run.experiment.training, run.tensors
    down = algorithm.broadcast(algorithm.server_init(workspace.shared.clone()))
    template = Uploads(algorithm, make_codec(training.upload, training.keep)).initial_memory(down)
    if COUNT in tensors:
        return _read_from_disk(path / "clients", run, template, client)
    store = InMemory(template)
    store.restore(run.round, tensors)
    return store.get(client, run.round)


def _read_from_disk(folder: Path, run: Run, template: AnyState, client: int) -> AnyState | None:
    """As `_read_memory`, from the files of `folder`, which a run may be writing; CheckpointError if some are lost."""
    if not (folder / "index.bin").is_file():
        raise CheckpointError(f"{folder}: is missing; it has the clients' own parameters")
    store = OnDisk(folder, run.clients, template)
    store.check(run.round, run.tensors)
    return store.get(client, run.round)


def _find_scores(path: Path, client: int, round_: int) -> ClientFacts:
    """Return a client's last scores until `round_`."""
    for line in reversed(read_lines(path / NAME)):
        if line["round"] <= round_ and client in line["clients"]:
            place = line["clients"].index(client)
            columns: dict[str, Any] = {name: values[place] for name, values in line.items() if name not in NO_SCORES}
            scores = {name: value for name, value in columns.items() if not name.startswith(TUNED)}
            return {"client": client, "round": line["round"], "samples": line["samples"][place], "scores": scores}
    return {"client": client, "round": None, "samples": None, "scores": {}}
