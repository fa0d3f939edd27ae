"""Simulations of the small problem, and the literal twins' view of the same."""

import torch

from fedadamw.algorithms import registry
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE
from fedadamw.engine.private_gradient import SamplePrivacy
from fedadamw.engine.ranks import ALONE
from fedadamw.engine.simulate import Simulation
from fedadamw.prepare.counter import tell_unequal_steps
from fedadamw.randomness import Purpose, Seeded, draw_batches, numpy_generator, sample_clients
from fedadamw.settings.training import TrainingSettings
from fedadamw.vector import Layout
from support.reference import Problem
from support.sequences import attention_model, batch_of, unequal_clients

ROUNDS = 5
PRIVACY = SamplePrivacy(0.7, 1.3, 6, Seeded(0))
PRIVATE = {"privacy": PRIVACY, "epochs": None, "steps": 3, "batch_size": 6, "clients_per_round": 5, "rounds": 2}
NO_BASE = torch.zeros(0)  # of a broadcast without frozen weights that change


def training_of(case, **changes):
    settings = {"rounds": ROUNDS, "clients_per_round": 3, "epochs": EPOCHS, "batch_size": BATCH, "lr": case.lr}
    return TrainingSettings(**{**settings, "clip": None, **case.training, **changes})


def simulation(
    case,
    task,
    *,
    clients=None,
    stack=1,
    step="fused",
    ranks=ALONE,
    seed=0,
    memory_folder=None,
    saved=None,
    held_out=None,
    noise=NO_NOISE,
    privacy=None,
    client_privacy=None,
    unequal_steps=False,
    steps_of=None,
    devices=None,
    federation=None,
    **changes,
):
    model = attention_model()
    algorithm = registry.make(case.name, registry.validate(case.name, case.settings), Blocks.of(model), noise)
    algorithm = tell_unequal_steps(algorithm, None, unequal=unequal_steps)
    clients = unequal_clients(task) if clients is None else clients
    how = {
        "stack": stack,
        "step": step,
        "ranks": ranks,
        "seed": seed,
        "memory_folder": memory_folder,
        "saved": saved,
        "held_out": held_out,
        "privacy": privacy,
        "client_privacy": client_privacy,
        "devices": devices,
        "federation": federation,
    }
    sim = Simulation.in_process(model, algorithm, task, clients, training_of(case, **changes), **how)
    if steps_of is not None:
        sim.clients.steps_of = steps_of
    return sim


def literal_problem(model, clients):
    """The paper's blocks of conftest.SmallTransformer, its tensors and hidden matrices, coordinate by coordinate."""
    blocks, tensors, hidden, start = [], [], [], 0
    for name, p in model.named_parameters():
        rows, n = p.shape[0], p.numel()
        unit = n // rows
        coordinates = list(range(start, start + n))
        tensors.append((coordinates, p.numel() > max(p.shape)))
        if p.dim() > 1 and not name.startswith("classifier"):
            hidden.append([coordinates[r * unit : (r + 1) * unit] for r in range(rows)])
        if p.dim() == 1:
            blocks.append(coordinates)
        elif name == "attention.in_proj_weight":  # width 4, 2 heads: two rows a head in queries and keys
            blocks += [coordinates[h * 2 * unit : (h + 1) * 2 * unit] for h in range(4)]
            blocks += [coordinates[r * unit : (r + 1) * unit] for r in range(8, 12)]
        else:
            blocks += [coordinates[r * unit : (r + 1) * unit] for r in range(rows)]
        start += n
    return Problem(blocks, tensors, hidden, clients)


def gradients_of_round(task, clients, round_, training, seed=0):
    """For each sampled client by number, its gradient functions, one a local step, each y -> list of numbers."""
    sampled = sample_clients(seed, round_, len(clients), training.clients_per_round)
    return {int(i): gradients_of_job(task, clients[i], int(i), round_, seed=seed) for i in sampled}


def gradients_of_job(task, samples, client, round_, *, repeat=0, seed=0):
    """The gradient functions of one client with these samples, one a local step."""
    model = attention_model()
    layout = Layout.of(model)

    def gradient_at(indices):
        batch = batch_of(task, indices)

        def gradient(y):
            leaf = torch.tensor(y, dtype=torch.float64, requires_grad=True)
            logits = torch.func.functional_call(model, layout.views(leaf), (batch[0],))
            return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch[1]), leaf)[0].tolist()

        return gradient

    generator = numpy_generator(seed, Purpose.BATCHES, round_, client, repeat)
    steps = draw_batches(samples, generator, batch_size=BATCH, steps=None, epochs=EPOCHS)
    return [gradient_at(indices) for indices in steps]


EPOCHS = 2


BATCH = 8


def simulate(model, task, clients, *, algorithm=None, **training):
    settings = {"rounds": 3, "clients_per_round": 3, "steps": 4, "batch_size": 8, "lr": 0.05, **training}
    return Simulation.in_process(model, algorithm or FedAvg(), task, clients, TrainingSettings(**settings))
