"""A node's half of a run: its own data, the model, the algorithm, and what it remembers from round to round.

It trains as the simulator's loop engine does, with the generators of its number among the clients: the same client
with the same samples sends the same numbers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.data.images import Images
from fedadamw.data.texts import Texts
from fedadamw.engine import codecs
from fedadamw.engine.client import Shard, Workspace
from fedadamw.engine.loop import Loop
from fedadamw.engine.record import DivergedError
from fedadamw.engine.step import stepper
from fedadamw.engine.store import OnDisk
from fedadamw.engine.uploads import Coded, Uploads
from fedadamw.flower.protocol import LateError, StaleError
from fedadamw.flower.wire import ArraySpec, digest, name_fields, read_arrays, to_array
from fedadamw.io.yaml_text import read_yaml
from fedadamw.models.lora import Folding
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import check_device, select_device
from fedadamw.prepare.simulation import algorithm_of, partition_of, samples_of
from fedadamw.settings.data import DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check

Config = Mapping[str, str | int | float | bool]  # what a node is started with: --node-config


class Reply(NamedTuple):
    """What a node answers."""

    arrays: dict[str, Array]
    numbers: dict[str, int | float]


class Node:
    """One client, ready to train.

    about: what the server says of the data, so that both build the same model. config: `partition-id`, its number
    among the clients, `device`, and `data`, its own folder or file where the partition's kind is `nodes`. home: its own
    folder.
    """

    def __init__(self, experiment: Experiment, about: Mapping[str, Any], config: Config, home: Path) -> None:
        self.number, self.home = read_number(config), home
        self.experiment = experiment
        device = select_device(experiment, read_device(config))
        if threads := config.get("threads", experiment.threads):
            torch.set_num_threads(int(threads))
        model, task, self.samples = _learned(experiment, about, config, self.number, device)
        self.workspace = Workspace(model)
        self.algorithm: AnyAlgorithm = algorithm_of(experiment, model)
        step = stepper(self.algorithm, experiment.training.clip, compiled=experiment.compile == "on")
        uploads = Uploads(self.algorithm, codecs.made(experiment.training.upload, experiment.training.keep))
        loop = Loop(self.workspace, self.algorithm, task, experiment.training, experiment.seed, step)
        self.engine = Coded(loop, uploads, experiment.seed)
        exact = experiment.lora is not None and experiment.lora.aggregate == "exact"
        self.folding = Folding(model) if exact else None
        down = self.algorithm.broadcast(self.algorithm.server_init(self.workspace.y.clone()))
        self._down = type(down)
        self._expected = {name: ArraySpec.of(t) for name, t in name_fields("down", down).items()}
        self._expected["statistics"] = ArraySpec.of(self.workspace.statistics)
        if self.folding is not None:
            self._expected["base"] = ArraySpec.of(self.folding.base)
        like = uploads.like(down)
        self._up = type(like)
        self._expected_change = {name: ArraySpec.of(t) for name, t in name_fields("up", like).items()}
        self._expected_change["statistics"] = self._expected["statistics"]
        self._last: tuple[int, Any] | None = None  # the last round that was trained here, and what it began from
        memory = uploads.memory(down)
        self.store = OnDisk(home, 1, memory) if memory != () else None

    def _received(
        self, arrays: Mapping[str, Array], facts: Mapping[str, Any], round_: int
    ) -> tuple[Any, dict[str, Tensor]]:
        """What came down, or is made of what has changed since the last round, and the tensors that came with it."""
        device = self.workspace.y.device
        changed = "digest" in facts
        found = read_arrays(arrays, self._expected_change if changed else self._expected)
        tensors = {name: t.to(device) for name, t in found.items()}
        if not changed:
            return self._down(*(tensors[f"down.{field}"] for field in self._down._fields)), tensors
        if self._last is None or self._last[0] != round_ - 1:
            raise StaleError(f"the state of round {round_} is not here")
        up = self._up(*(tensors[f"up.{field}"] for field in self._up._fields))
        number = self.workspace.y.new_tensor
        down = self.algorithm.server_update(self._last[1], up, number(facts["lr"]), number(facts["participation"]))
        if digest(down) != facts["digest"]:
            raise StaleError("another state comes out here than on the server")
        return down, tensors

    @property
    def sample_count(self) -> dict[str, int | float]:
        """How many samples it holds, where that may be told."""
        return {"num-examples": len(self.samples)} if self.experiment.federation.sample_counts else {}

    def hello(self) -> Reply:
        """What the server must know before the first round."""
        layout = int(self.workspace.layout.fingerprint[:12], 16)
        return Reply({}, {"client": self.number, "layout": layout, **self.sample_count})

    def train(self, arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> Reply:
        """Train from what came down in round `facts["round"]` (from 0).

        What was remembered after round `facts["counted"]` is gone on from: the last whose answer counted, 0 for none.
        StaleError where only what has changed came, and the state of the round before is not here. RefusedError where
        `arrays` are not what this algorithm sends down; CheckpointError where memories are lost, LateError where a
        message that was sent later has already had them.
        """
        if self.store is not None:
            self._check_order(float(facts["sent"]))
        round_ = int(facts["round"])
        down, tensors = self._received(arrays, facts, round_)
        self._last = round_, down
        if self.folding is not None:
            self.folding.load(tensors["base"])
        memory, fresh = self._remembered(int(facts["counted"]))
        shard = Shard(self.number, self.samples, memory)
        ((_, answer),) = self.engine.answers([shard], round_, down, tensors["statistics"])
        if not answer.finite:
            lr = self.experiment.training.lr_at(round_)
            raise DivergedError(f"its numbers are not finite any more; try a smaller training.lr (now {lr:.3g})")
        assert answer.payload is not None
        if self.store is not None:
            self.store.put(0, round_ + 1, answer.memory)
            self.store.sync()
        sent = {**{f"up.{name}": t for name, t in answer.payload.items()}, "statistics": answer.statistics}
        numbers = {"client": self.number, "loss": float(answer.loss), **self.sample_count}
        if fresh:
            numbers["fresh"] = 1
        return Reply({n: to_array(t) for n, t in sent.items()}, numbers)

    def _check_order(self, sent: float) -> None:
        """LateError where a message that the server sent later was here before: its memories would be mixed up."""
        path = self.home / "last"
        last = float(path.read_text()) if path.exists() else 0.0
        if sent < last:
            raise LateError("a message that was sent after it has been answered (or the server's clock was put back)")
        write_atomically(path, repr(sent).encode())

    def _remembered(self, counted: int) -> tuple[Any, bool]:
        """What was kept after the last round that counted, 0 for none; and whether it is lost and that is allowed.

        CheckpointError where it is lost and is not.
        """
        if self.store is None:
            return None, False
        self.store.tensors(counted)  # from now on, no earlier round will be asked for
        self.store.forget_after(0, counted)
        if counted == 0:
            return None, False
        if self.store.has(0, counted):
            return self.store.get(0, counted), False
        allowed = self.experiment.federation.lost_memory == "fresh"
        if not allowed:
            raise CheckpointError(f"{self.home}: the memories of round {counted} are lost (federation.lost_memory)")
        self.store.forget_after(0, 0)
        return None, True


def read_number(config: Config) -> int:
    """The node's number among the clients, from what it was started with."""
    given = config.get("partition-id")
    fine = isinstance(given, int) and not isinstance(given, bool) and given >= 0
    check(fine, f"this node's partition-id is {given!r}: give --node-config 'partition-id=NUMBER', its own from 0")
    return int(given)  # type: ignore[arg-type]  # as just checked


def read_device(config: Config) -> str:
    """The device that the node was started with; the first GPU, if there is one, where that is not said."""
    given = config.get("device", "auto")
    check_device("this node's device", given)
    return str(given)


def _learned(
    experiment: Experiment, about: Mapping[str, Any], config: Config, number: int, device: torch.device
) -> tuple[nn.Module, Task, np.ndarray]:
    """The model, its task, and the numbers of this node's samples."""
    train, samples = _own(experiment, about, config, number)
    nothing: Any = train.select(np.arange(0))
    if isinstance(train, Texts):
        text = texts.model_of(experiment, about)
        return text.model.to(device), texts.task_of(experiment, text.form, train, nothing, device), samples
    image = images.model_of(experiment, about)
    return image.model.to(device), images.task_of(experiment, image, train, nothing, device, about), samples


def _own(
    experiment: Experiment, about: Mapping[str, Any], config: Config, number: int
) -> tuple[Texts | Images, np.ndarray]:
    """Samples, and which of them are this node's: a part of the experiment's own, or all in the node's folder."""
    if experiment.partition.kind != "nodes":
        train, _ = samples_of(experiment)
        assert isinstance(train, Texts | Images)
        clients = partition_of(experiment, train)
        check(number < len(clients), f"this node's partition-id is {number}; there are {len(clients)} clients")
        return train, clients[number]
    place, split = config.get("data"), config.get("split", "train")
    check(isinstance(place, str), "this node has no data: give --node-config 'data=\"FOLDER\"'")
    own = {**experiment.data.model_dump(), "source": place, "config": None, "test_source": None, "test_split": split}
    here = experiment.model_copy(update={"data": DataSettings(**own)})
    found = texts.held_out(here, about) if here.data.is_text else images.held_out(here, about)
    check(len(found) > 0, f"{place}: holds no samples")
    return found, np.arange(len(found))


def memory_folder(config: Config, federation: str, number: int) -> Path:
    """Where a node keeps what it remembers of a run: in `state-dir`, or in the user's own state folder."""
    check(federation.isalnum(), f"the run's name {federation!r} is none")
    base = config.get("state-dir") or Path.home() / ".local/state/fedadamw"
    return Path(str(base)) / federation / f"client-{number}"


def load_node(settings: str, about: str, config: Config, federation: str) -> Node:
    """The node of a run, from what travels as text: its settings (YAML) and what is known of the data (JSON)."""
    from fedadamw.settings.load import parse_settings

    try:
        given, known = read_yaml("settings", settings), json.loads(about)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the server's settings cannot be read ({error})") from None
    number = read_number(config)
    home = memory_folder(config, federation, number)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return Node(parse_settings(given), known, config, home)
    except OSError as error:
        raise CheckpointError(f"{home}: {error}") from None
