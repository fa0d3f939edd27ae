"""Simulations whose clients keep parameters of their own."""

from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.ranks import ALONE
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.prepare.personal import build_parts
from fedadamw.settings.experiment import Experiment
from support.runs import training_of
from support.sequences import SmallTransformer, attention_model, unequal_clients

OWN = ("mlp.*", "classifier.*")  # a hidden matrix, and what is none


FAST = ("fedadamw-mean-v", "scaffold")


def few(table):
    """Names of the table's rows: without memories and with them; the others are left to `make test-all`."""
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in table]


def personal_simulation(
    case,
    task,
    *,
    own=OWN,
    model=None,
    clients=None,
    stack=1,
    step="fused",
    ranks=ALONE,
    memory_folder=None,
    saved=None,
    held_out=None,
    finetune=0,
    privacy=None,
    client_privacy=None,
    **changes,
):
    training = training_of(case, **changes)
    experiment = Experiment(personal={"parameters": own} if own else None, training=training)

    def build_algorithm(_, model):
        return registry.make(case.name, registry.validate(case.name, case.settings), Blocks.of(model))

    workspace, algorithm = build_parts(experiment, attention_model() if model is None else model, build_algorithm)
    simulated = SimulatedClients(
        workspace,
        algorithm,
        task,
        unequal_clients(task) if clients is None else clients,
        training,
        seed=0,
        stack=stack,
        may_loop=False,
        step=step,
        memory_folder=memory_folder,
        ranks=ranks,
        held_out=held_out,
        finetune=finetune,
        privacy=privacy,
        client_privacy=client_privacy,
    )
    how = {"ranks": ranks, "saved": saved, "client_privacy": client_privacy}
    return Simulation(workspace, algorithm, task, training, simulated, **how)


def own_numbers(simulation, client):
    """A client's own numbers after the last round, None before its first."""
    memory = simulation.clients.store.get(client, simulation.state.round)
    return None if memory is None else memory.own_server_x


def places_of(model, own=OWN):
    """The coordinates of personal parameters in the model's own order."""
    start, places = 0, []
    for name, p in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in own):
            places += range(start, start + p.numel())
        start += p.numel()
    return places


class NormedTransformer(SmallTransformer):
    """With batch norms, whose running statistics some clients keep."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.BatchNorm1d(5), nn.BatchNorm1d(5)  # over the places in a sequence

    def forward(self, x):
        y = self.before(self.embed(x))
        y = self.after(y + self.attention(y, y, y, need_weights=False)[0])
        return self.classifier(self.norm(torch.tanh(self.mlp(y))).mean(1))


def normed_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NormedTransformer().double()
