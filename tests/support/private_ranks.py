"""Run by torchrun in test_private_mean.py: privacy of clients on two ranks, the states in the folder that is given."""

import sys
from pathlib import Path

import torch

from fedadamw.checkpoint import write
from fedadamw.engine.ranks import current_team
from fedadamw.randomness import Seeded
from support.cases import CASES
from support.client_privacy import privacy, private_simulation
from support.sequences import SequenceTask

NAMES = ("fedadamw-mean-v", "scaffold")
STACKS = (1, 3)


def of_few_clients(name, stack, **how):
    """A simulation in which a rank, or both, may have no client."""
    of = privacy(clients=2, quantile=0.5, entropy=Seeded(2))
    return private_simulation(CASES[name], SequenceTask(), of, stack=stack, **how)


def main(folder: Path) -> None:
    """Write one checkpoint an algorithm and number of stacked clients, by rank 0."""
    ranks = current_team(torch.device("cpu"))
    for name in NAMES:
        for stack in STACKS:
            sim = of_few_clients(name, stack, ranks=ranks)
            clients = [record.clients for record in sim.rounds()]
            if ranks.leads:
                write(folder / f"{name}-{stack}", "checkpoint", sim.tensors(), {"clients": clients})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
