"""Run by torchrun in test_ranks.py: every algorithm for three rounds, its server state in the folder that is given."""

import atexit
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from fedadamw.checkpoint import write
from fedadamw.data.sums import Losses
from fedadamw.engine import evaluation
from fedadamw.engine.ranks import Team, current_team, gather_states, scatter_states
from support.cases import EVERYWHERE, register
from support.personal import normed_model, personal_simulation
from support.runs import PRIVATE, simulation
from support.sequences import SequenceTask, held_out_samples

SLEEP_S = 0.6
CODED = [(name, upload) for name in ("fedadamw-vm", "scaffold") for upload in ("bfloat16", "int8", "top-k")]
EACH = {"rounds": 3, "clients_per_round": 5, "clip": 1.0}
NORMALIZED = {
    "clients_per_round": 5,
    "weighting": "samples",
    "normalize": True,
    "steps_of": [2, 20, 7, 1, 5].__getitem__,
}


def main(folder: Path, stack: int) -> None:
    """Write one checkpoint an algorithm, by rank 0."""
    ranks = current_team(torch.device("cpu"))
    check_shared(ranks)
    check_states(ranks)
    register()
    for name, upload in [*((name, "float32") for name in EVERYWHERE), *CODED]:
        sim = simulation(EVERYWHERE[name], SequenceTask(), **EACH, upload=upload, stack=stack, ranks=ranks)
        losses = [
            (record.train_loss, record.test_loss, record.up_bytes, *sim.losses.values()) for record in sim.rounds()
        ]
        if ranks.rank == 0:
            write(folder / f"{name}-{upload}", "checkpoint", sim.tensors(), {"losses": losses})
    evaluation.GROUP = 4
    for name, task in EVALUATED.items():
        scores = evaluated(task, stack=stack, ranks=ranks)
        if ranks.rank == 0:
            write(folder / f"scores-{name}", "checkpoint", {}, {"scores": scores})
    sim = personal_simulation(EVERYWHERE["scaffold"], SequenceTask(), upload="int8", stack=stack, ranks=ranks)
    list(sim.rounds())
    if ranks.rank == 0:
        write(folder / "own-numbers", "checkpoint", sim.tensors(), {})
    sim = simulation(EVERYWHERE["fedadamw-mean-v"], SequenceTask(), stack=stack, ranks=ranks, **PRIVATE)
    list(sim.rounds())
    if ranks.rank == 0:
        write(folder / "private", "checkpoint", sim.tensors(), {})
    sim = simulation(EVERYWHERE["fedexp"], SequenceTask(), stack=stack, ranks=ranks, **NORMALIZED)
    losses = [record.train_loss for record in sim.rounds()]
    if ranks.rank == 0:
        write(folder / "normalized", "checkpoint", sim.tensors(), {"losses": losses})
    for kind in OWN_MODELS:
        scores = own_scores(kind, stack=stack, ranks=ranks)
        if ranks.rank == 0:
            write(folder / f"own-{kind}", "checkpoint", {}, {"scores": scores})
    sim = simulation(EVERYWHERE["fedavg"], SequenceTask(), clients_per_round=2, stack=stack, ranks=ranks)
    sim.listeners.append(lambda *_: time.sleep(SLEEP_S * ranks.rank))  # a slow rank
    waited = [sim.step().waited_s, ranks.waited_s]
    if ranks.rank == 0:
        write(folder / "waited", "checkpoint", {}, {"mean and of rank 0": waited})
    atexit._run_exitfuncs()
    left = [name for path in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := path.read_text().strip())]
    assert left == [], "threads that may end the process with SIGABRT"


class Unpooled(SequenceTask):
    """A task whose accuracy is computed from the outputs of all samples."""

    kind = Losses(("accuracy",))


EVALUATED = {"sums": SequenceTask(), "outputs": Unpooled()}


def evaluated(task: SequenceTask, **how) -> list:
    """Return the columns of every evaluation of the clients in a run, and what the record says of them."""
    run = {"clients_per_round": 5, "client_evaluation": 2, "held_out": held_out_samples(task)}
    sim, found = simulation(EVERYWHERE["fedadamw-vm"], task, **run, **how), []
    for record in sim.rounds():
        said = [record.clients_mean, record.clients_weighted, record.clients_std, record.clients_worst_decile]
        if sim.scores is not None:
            columns = list(sim.scores.columns.values())
            found.append([record.round, sim.scores.clients, sim.scores.samples, columns, said, record.clients_metrics])
    return found


OWN_MODELS = {"heads": ("classifier.*",), "norms": ("before.*", "norm.*"), "tuned": (), "one": ("classifier.*",)}


def own_scores(kind: str, **how) -> list:
    """Return the columns of every evaluation of clients' own models in a run, and at its end the tuned ones'."""
    task = SequenceTask()
    held_out = held_out_samples(task)
    if kind == "one":  # fewer clients than ranks
        held_out = [own if client == 2 else own[:0] for client, own in enumerate(held_out)]
    model = normed_model() if kind == "norms" else None
    run = {"clients_per_round": 3, "client_evaluation": 2, "held_out": held_out, "finetune": 2}
    sim = personal_simulation(EVERYWHERE["fedadamw-mean-v"], task, own=OWN_MODELS[kind], model=model, **run, **how)
    return [[*sim.scores.columns.values(), [float(sim.state.round)]] for _ in sim.rounds() if sim.scores is not None]


def check_shared(ranks: Team) -> None:
    """What one rank makes, the other sees, in memory of both."""
    made = []

    def make() -> Iterator[torch.Tensor]:
        made.append(True)
        yield torch.arange(6.0).view(2, 3)
        yield torch.tensor([True, False])

    numbers, flags = ranks.share_tensors(make)
    assert len(made) == (ranks.rank == 0)
    assert numbers.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert flags.tolist() == [True, False]
    ranks.sum([torch.zeros(1)])  # until both have looked
    if ranks.rank == 1:
        numbers[0, 0] = 7.0
    ranks.sum([torch.zeros(1)])
    assert numbers[0, 0] == 7.0, "one copy"


class Memory(NamedTuple):
    """What a client remembers."""

    vector: torch.Tensor
    count: torch.Tensor


def memory(number: float) -> Memory:
    return Memory(torch.tensor([number, -0.0]), torch.tensor([3]))


def check_states(ranks: Team) -> None:
    """Rank 0's states reach all ranks, and those of all ranks each other; in a run's bits no zero is negative."""
    kept = [memory(5.0), None, memory(6.0)] if ranks.rank == 0 else [None] * 3
    scattered = list(scatter_states(kept, memory(0.0), ranks))
    assert [state and state.vector[0].item() for state in scattered] == [5.0, None, 6.0]
    mine = {3: memory(7.0)} if ranks.rank == 0 else {0: memory(8.0), 2: memory(9.0)}
    gathered = dict(gather_states(mine, 4, memory(0.0), ranks))
    assert {place: state.vector[0].item() for place, state in gathered.items()} == {0: 8.0, 2: 9.0, 3: 7.0}
    for state in [scattered[0], *gathered.values()]:
        assert state.count.tolist() == [3], "integers stay what they are"
        assert not state.vector[1].signbit()
    assert mine[min(mine)].vector[1].signbit(), "what a rank has is not changed"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
