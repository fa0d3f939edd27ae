"""Privacy of clients for runs of the small problem."""

from dataclasses import replace

from fedadamw.engine.private_mean import ClientPrivacy
from fedadamw.randomness import Seeded
from support.runs import simulation

STEPS = 4
NONE = ClientPrivacy(0.0, 1e12, 1e12, 5, STEPS, Seeded(0), floor=0.01)  # no noise, and nothing is as long as the clips


def privacy(**changes):
    """Return privacy of clients that hides little, so that runs learn; changed."""
    return replace(NONE, noise_multiplier=0.01, clip=0.05, moment_clip=0.1, **changes)


def private_simulation(case, task, client_privacy, **changes):
    """Return a simulation of the small problem with as many clients a round, and steps, as the privacy says."""
    how = {"clients_per_round": client_privacy.clients, "steps": STEPS, "epochs": None, **changes}
    return simulation(case, task, client_privacy=client_privacy, **how)
