"""Trains and evaluates one client on a node: its data, the model, the algorithm, and the client's memory.

It trains like the simulator's loop engine, with the random generators of its client number: the same client with the
same samples sends the same numbers. With privacy of samples, noise and batches come from the operating system instead,
so no two trainings are alike; each is charged to the node's ledger before it begins; told.py lists all that is sent.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, ParamSpec

import torch
from flwr.app import Array

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.codecs import make_codec
from fedadamw.engine.loop import Loop
from fedadamw.engine.own_models import has_own_models, own_model
from fedadamw.engine.personal import make_steps, with_statistics
from fedadamw.engine.private_gradient import check_separate
from fedadamw.engine.record import DivergedError
from fedadamw.engine.uploads import CodedEngine, Uploads
from fedadamw.engine.workspace import Workspace, autocast
from fedadamw.flower.node.broadcast import BroadcastReader
from fedadamw.flower.node.config import memory_folder, read_device, read_number
from fedadamw.flower.node.demands import read_demands
from fedadamw.flower.node.local_data import build_task, sum_own_pixels
from fedadamw.flower.node.memory import ClientMemory
from fedadamw.flower.node.spending import Spending
from fedadamw.flower.protocol import SUMS, DeclinedError, NodeConfig, Numbers, Request
from fedadamw.flower.wire import to_array
from fedadamw.io.yaml_text import read_yaml
from fedadamw.models.activation_checkpoints import checkpoint_layers
from fedadamw.models.lora.means import make_folding
from fedadamw.prepare.adapters import build_halves
from fedadamw.prepare.counter import tell_unequal_steps
from fedadamw.prepare.device import select_device
from fedadamw.prepare.personal import build_parts
from fedadamw.prepare.privacy import check_privacy, sample_privacy
from fedadamw.prepare.problem import Facts
from fedadamw.prepare.simulation import build_algorithm
from fedadamw.randomness import Entropy, OperatingSystem
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check
from fedadamw.vector import Vector

Given = ParamSpec("Given")


class Reply(NamedTuple):
    """A node's reply."""

    arrays: dict[str, Array]
    numbers: Numbers


class NodePart(NamedTuple):
    """What trains in a round, and what this node keeps of such rounds; with lora.aggregate=alternate there are two."""

    engine: CodedEngine
    broadcasts: BroadcastReader
    memory: ClientMemory


class Node:
    """One client, ready to train.

    about: the server's facts about the data, so that both sides build the same model. config: --node-config.
    home: the folder of its memory, in one with the run's name. entropy: where private noise and batches come from;
    None: the operating system. unequal_steps: whether the run's clients take unequal numbers of local steps.
    """

    def __init__(
        self,
        experiment: Experiment,
        about: Facts,
        config: NodeConfig,
        home: Path,
        entropy: Entropy | None = None,
        *,
        unequal_steps: bool = False,
    ) -> None:
        self.entropy = entropy or OperatingSystem()
        self.experiment, self.number = experiment, read_number(config)
        device = select_device(experiment, read_device(config))
        if threads := config.get("threads", experiment.threads):
            torch.set_num_threads(int(threads))
        model, self.local = build_task(experiment, about, config, self.number, device)
        task = self.local.task
        self.spending = Spending.of(experiment, config, home.parent.name, self.number, len(self.local.samples))
        self.pixels = sum_own_pixels(task, about, self.local.samples)
        if self.pixels and self.spending.accounted:
            raise DeclinedError("it tells no sums of its pixels: give data.mean and data.std")
        if self.spending.accounted:
            _decline_unless(check_separate, model)
        if experiment.training.gradient_checkpointing:
            checkpoint_layers(model, experiment.model.name)
        self.workspace, algorithm = build_parts(experiment, model, build_algorithm)
        self.folding = make_folding(model, experiment.lora)
        self.halves = build_halves(experiment, self.workspace, build_algorithm)
        self.algorithm = tell_unequal_steps(algorithm, self.halves, unequal=unequal_steps)
        if self.halves is None:
            base = None if self.folding is None else self.folding.base
            self.parts = [self._make_part(self.workspace, self.algorithm, task, base, home)]
        else:
            self.parts = [
                self._make_part(half.workspace, half.algorithm, task, half.resting(self.workspace.y), home / name)
                for name, half in self.halves.named.items()
            ]

    def _make_part(
        self, workspace: Workspace, algorithm: AnyAlgorithm, task: Task, base: Vector | None, home: Path
    ) -> NodePart:
        """Return what trains the numbers of `workspace`. base: the frozen weights that the server sends, if any."""
        experiment, training = self.experiment, self.experiment.training
        step = make_steps(algorithm, training.clip, "compiled" if experiment.compile == "on" else "fused")
        privacy = sample_privacy(experiment, self.entropy)
        loop = Loop(workspace, algorithm, task, training, experiment.seed, step, privacy=privacy)
        uploads = Uploads(algorithm, make_codec(training.upload, training.keep))
        down = algorithm.broadcast(algorithm.server_init(workspace.shared.clone()))
        model = {"x": self.workspace.shared, "statistics": self.workspace.shared_statistics}
        if self.folding is not None:
            model["base"] = self.folding.base
        broadcasts = BroadcastReader(algorithm, workspace, down, uploads.template(down), base, model)
        fresh_if_lost = experiment.federation.lost_memory == "fresh"
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        memory = ClientMemory(home, uploads.initial_memory(down), fresh_if_lost=fresh_if_lost)
        engine = CodedEngine(with_statistics(loop, algorithm), uploads, experiment.seed)
        return NodePart(engine, broadcasts, memory)

    @property
    def sample_count(self) -> Numbers:
        """Its number of samples; empty with federation.sample_counts=false, as with privacy of samples."""
        told = self.experiment.federation.sample_counts and not self.spending.accounted
        return {"num-examples": len(self.local.samples)} if told else {}

    def hello(self) -> Reply:
        """Return the client's number, model layout and numbers of samples; sums of its pixels, if these are needed.

        How many samples are held out is told if nodes are evaluated. Raises DeclinedError if the node's own budget does
        not cover a training.
        """
        self.spending.check()
        layout = int(self.workspace.layout.fingerprint[:12], 16)
        numbers: Numbers = {"client": self.number, "layout": layout, **self.sample_count}
        if self.experiment.training.client_evaluation:
            numbers["held-out"] = self.local.held_out_count
        return Reply(self.pixels, numbers)

    def train(self, arrays: Mapping[str, Array], request: Request) -> Reply:
        """Train one round, starting from the server's broadcast and the memory of the client's last round that counted.

        Raises LateError if a newer request was answered, StaleError or RefusedError if the broadcast cannot be read,
        CheckpointError if the memory is lost, DeclinedError if the node's own budget does not cover it, DivergedError
        if the result is not finite.
        """
        round_ = int(request["round"])
        part = self.parts[round_ % len(self.parts)]
        part.memory.check_order(float(request["sent"]))
        broadcast = part.broadcasts.read(arrays, request)
        if self.halves is not None:
            self.halves.enter(broadcast)
        if self.folding is not None:
            self.folding.load(broadcast.base)
        memory, fresh = part.memory.load(int(request["counted"]))
        shard = Shard(self.number, self.local.samples, memory, repeat=int(request.get("repeat", 0)))
        self.spending.charge(round_)  # from here on the data are used
        ((_, answer),) = part.engine.train([shard], broadcast)
        if self.spending.accounted:
            answer = answer._replace(statistics=broadcast.statistics)  # the model's own were not made private
        self._check_finite(answer, round_)
        part.memory.save(round_ + 1, answer.memory)
        reply = self._pack(answer, fresh=fresh)
        if "repeat" in request:  # a buffered run, in which the server may wait for several answers of this client
            reply.numbers.update(version=round_, repeat=shard.repeat)
        return reply

    def evaluate(self, arrays: Mapping[str, Array], request: Request) -> Reply:
        """Return sums over this node's held-out samples, from which the server computes the model's loss and metrics.

        With personal parameters the model is the client's own. It changes no memory. Raises StaleError or
        RefusedError if the model cannot be read, CheckpointError if its memory is lost, InputError without samples,
        DeclinedError with privacy of samples.
        """
        if self.spending.accounted:
            raise DeclinedError("it takes no part in evaluations")
        check(self.local.held_out_count > 0, "this node has no held-out samples: give it test or held-out")
        part = self.parts[int(request["round"]) % len(self.parts)]
        x, statistics, base = part.broadcasts.read_model(arrays, request)
        if self.halves is not None:
            self.halves.leave()
        if self.folding is not None:
            self.folding.load(base)
        if has_own_models(self.algorithm):
            memory = part.memory.read(int(request["counted"]))
            x, statistics = own_model(self.algorithm, x, statistics, memory)
        self.workspace.load(x, statistics)
        module = self.workspace.module.eval()
        with torch.no_grad():
            with autocast(self.experiment.training, x.device):
                outputs = self.local.outputs(module)
            sums = self.local.task.sums(outputs)  # without autocast, which would round them
        return Reply({SUMS: to_array(sums)}, {"client": self.number})

    def _check_finite(self, answer: Answer, round_: int) -> None:
        if not answer.finite:
            lr = self.experiment.training.lr_at(round_)
            raise DivergedError(f"the client's numbers are no longer finite; try a smaller training.lr (now {lr:.3g})")

    def _pack(self, answer: Answer, *, fresh: bool) -> Reply:
        """Return the reply for a client's finished round."""
        assert answer.payload is not None
        tensors = {**{f"up.{name}": t for name, t in answer.payload.items()}, "statistics": answer.statistics}
        loss: Numbers = {} if self.spending.accounted else {"loss": float(answer.loss)}
        numbers: Numbers = {"client": self.number, **loss, **self.sample_count}
        if fresh:
            numbers["fresh"] = 1
        return Reply({name: to_array(t) for name, t in tensors.items()}, numbers)


def load_node(
    settings: str,
    about: str,
    config: NodeConfig,
    federation: str,
    entropy: Entropy | None = None,
    *,
    unequal_steps: bool = False,
) -> Node:
    """Build the node of a run from a request's settings (YAML) and facts about the data (JSON).

    entropy, unequal_steps: see Node. Raises DeclinedError, before data are read, if the run has less privacy than the
    node demands.
    """
    from fedadamw.settings.load import parse_settings

    try:
        raw_settings, facts = read_yaml("settings", settings), json.loads(about)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the server's settings cannot be read ({error})") from None
    home = memory_folder(config, federation, read_number(config))
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        experiment = parse_settings(raw_settings)
        check_run(experiment, config)
        return Node(experiment, facts, config, home, entropy, unequal_steps=unequal_steps)
    except OSError as error:
        raise CheckpointError(f"{home}: {error}") from None


def check_run(experiment: Experiment, config: NodeConfig) -> None:
    """Raise DeclinedError if a run has less privacy than this node demands, or than it says that it has."""
    read_demands(config).check_run(experiment.privacy)
    _decline_unless(check_privacy, experiment, remote=True)  # again: the server is not trusted
    evaluates = experiment.privacy is not None and experiment.training.client_evaluation
    if evaluates:
        raise DeclinedError("it takes no part in evaluations: set training.client_evaluation=0")


def _decline_unless(check_settings: Callable[Given, None], *given: Given.args, **named: Given.kwargs) -> None:
    """Raise what a check of settings finds as a DeclinedError, whose text the server learns."""
    try:
        check_settings(*given, **named)
    except InputError as error:
        raise DeclinedError(str(error)) from None
