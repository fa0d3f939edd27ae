"""The plan of a run: memory by part and phase, bytes sent, engine and step."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fedadamw.engine.step import Kind
from fedadamw.plan.counted import BASE, EVALUATION, MEMORIES, Counts
from fedadamw.plan.data_shape import DataShape, find_shape
from fedadamw.plan.evaluated import Evaluated, count_evaluated
from fedadamw.plan.meter import Parts
from fedadamw.plan.rehearsal import Rehearsal, rehearse
from fedadamw.plan.room import Room, find_room
from fedadamw.prepare.checks import check_settings
from fedadamw.settings.experiment import Experiment

DATA, CHECKPOINT, ANSWERS, CACHE = "data", "checkpoint", "answers", "keys and values"
VERSIONS = "older versions"  # that clients still train from, with buffered aggregation
COPIES_OF_CHECKPOINT = 3  # while it is written: a copy of the state, the bytes of each tensor, and those of the file
LAYERS_AT_ONCE = 2  # whole on a device, of those that shards split: the present one and the next
SLOTS = 2  # memories of a client that are kept in RAM: of the last round, and of the one before


@dataclass(frozen=True)
class Plan:
    """What a run needs, in bytes. Tables of parts add up to the memory of one rank."""

    experiment: Experiment
    ranks: int
    room: Room
    data: DataShape
    rehearsal: Rehearsal

    @property
    def counts(self) -> Counts:
        """The bytes of a round."""
        return self.rehearsal.counts

    @cached_property
    def phases(self) -> Mapping[str, Parts]:
        """The memory of rank 0 on the device, by part, at the peak of each phase."""
        phases = {name: {**parts, **self._always} for name, parts in self.counts.phases.items()}
        if self.rehearsal.cache:
            phases[ANSWERS] = {**phases[EVALUATION], CACHE: self.rehearsal.cache}
        if self.room.device.type == "cpu":
            phases[CHECKPOINT] = {**self.counts.between, **self._always, CHECKPOINT: self._checkpoint}
        return {name: {**parts, BASE: parts.get(BASE, 0) - self._elsewhere} for name, parts in phases.items()}

    @property
    def _elsewhere(self) -> int:
        """Bytes of the frozen weights that the other processes of a client's group hold; two layers are whole here."""
        r = self.rehearsal
        return max(r.layers - r.layers // self.experiment.shards - LAYERS_AT_ONCE * r.layer, 0)

    @property
    def _always(self) -> Parts:
        """What is on the device all the time besides the model and the states."""
        on_cpu = self.room.device.type == "cpu"
        parts = {DATA: self.data_bytes if on_cpu or self.experiment.data.resident else 0}
        if on_cpu:
            parts |= {MEMORIES: self.memories, VERSIONS: self.older_versions}
        return {part: size for part, size in parts.items() if size}

    @property
    def data_bytes(self) -> int:
        """The pixels of all images; texts are small and not counted."""
        image, data = self.data.image, self.data
        if image is None:
            return 0
        return image[0] * image[1] * image[2] * ((data.samples or 0) + (data.held_out or 0))

    @property
    def memories(self) -> int:
        """What is kept of all clients that have taken part by the last round, in RAM."""
        if self.experiment.client_memory == "disk":
            return self.counts.memory
        return SLOTS * self.counts.memory * self._participants

    @property
    def older_versions(self) -> int:
        """What the clients at work began with, in RAM: at most a version for each, with buffered aggregation."""
        t = self.experiment.training
        oldest = t.clients_at_once if t.max_staleness is None else min(t.clients_at_once, t.max_staleness)
        return oldest * self.counts.down_bytes if t.buffered else 0

    @property
    def memories_on_disk(self) -> int:
        """The file of the clients' memories, with three slots for each."""
        return 3 * self.counts.memory * self._participants if self.experiment.client_memory == "disk" else 0

    @property
    def _participants(self) -> int:
        t = self.experiment.training
        return min(self.experiment.partition.clients, t.rounds * t.clients_per_round)

    @property
    def _checkpoint(self) -> int:
        kept = 0 if self.experiment.client_memory == "disk" else self.counts.memory * self._participants
        return COPIES_OF_CHECKPOINT * (self.counts.state + kept + self.older_versions)

    @property
    def peak(self) -> int:
        """Bytes on the device at the peak of rank 0, without Python and libraries."""
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def needed(self) -> int:
        """Bytes on the device for all ranks that share it, with Python and libraries."""
        if self.room.device.type != "cpu":
            return self.peak  # each rank has its own GPU
        # rank 0 keeps the memories and writes the checkpoints
        follower = self.counts.peak - self._elsewhere + self.data_bytes
        return self.peak + (self.ranks - 1) * follower + self.ranks * self.room.own

    @property
    def fits(self) -> bool:
        """Whether it fits in what is free; true if that is not known."""
        return self.room.free is None or self.needed <= self.room.free

    @property
    def evaluated(self) -> Evaluated | None:
        """What it takes to evaluate clients on their own held-out samples, if they are."""
        return count_evaluated(self.experiment, self.data)

    @property
    def engine(self) -> str:
        """loop or stacked."""
        return "stacked" if self.rehearsal.stack > 1 else "loop"

    @property
    def step(self) -> Kind:
        """How a local step is done."""
        return self.rehearsal.step

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON; bytes."""
        r, c, room = self.rehearsal, self.counts, self.room
        return {
            "device": room.name,
            "total": room.total,
            "free": room.free,
            "fits": self.fits,
            "needed": self.needed,
            "ranks": self.ranks,
            "libraries": room.own,
            "peak": self.peak,
            "phases": {name: dict(parts) for name, parts in self.phases.items()},
            "trained": r.trained,
            "frozen": r.frozen,
            "saved_for_backward": c.saved,
            "down_bytes": c.down_bytes,
            "up_bytes": c.up_bytes,
            "clients_per_round": self.experiment.training.clients_per_round,
            "client_memory": c.memory,
            "memories": self.memories,
            "memories_on_disk": self.memories_on_disk,
            "client_evaluation": None if self.evaluated is None else self.evaluated.to_dict(),
            "engine": self.engine,
            "stack": r.stack,
            "step": self.step,
            "assumed": list(self.data.assumed),
        }


def make_plan(
    experiment: Experiment, *, ranks: int = 1, room: Room | None = None, data: DataShape | None = None
) -> Plan:
    """Return the plan of an experiment; nothing is loaded. Raises InputError if its settings contradict each other.

    Stacked clients are halved, as the engine would, until they fit.
    """
    check_settings(experiment, remote=False)
    experiment = _with_answers(experiment)
    room, data = room or find_room(experiment), data or find_shape(experiment)
    plan = Plan(experiment, ranks, room, data, rehearse(experiment, data, room.device))
    while not plan.fits and plan.rehearsal.stack > 1:
        plan = replace(plan, rehearsal=rehearse(experiment, data, room.device, plan.rehearsal.stack // 2))
    return plan


def _with_answers(experiment: Experiment) -> Experiment:
    """Return the experiment with as many clients a round as answers make a version, if aggregation is buffered."""
    t = experiment.training
    if not t.buffered:
        return experiment
    changes = {"clients_per_round": t.updates_per_version, "concurrency": t.clients_at_once}
    return experiment.model_copy(update={"training": t.model_copy(update=changes)})
