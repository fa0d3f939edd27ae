"""Clients in classes by how many samples they have, with what each class has spent; and what a run assumes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedadamw.privacy.spending import Spent
from fedadamw.settings.privacy import PrivacySettings

CLASSES = 4  # of about as many clients each


class ClientClass(NamedTuple):
    """Clients with similar numbers of samples; rate, sums and epsilon are those of the one that spends most."""

    least: int  # samples of a client
    most: int
    clients: int
    rate: float
    times: int
    epsilon: float


def group_clients(
    sizes: Sequence[int] | np.ndarray, spent: Spent, noise_multiplier: float, delta: float
) -> list[ClientClass]:
    """Return the clients of `sizes` (N,) samples in classes, small ones first; those of one size are in one class."""
    n = np.asarray(sizes)
    edges = np.unique(np.quantile(n, np.linspace(0, 1, CLASSES + 1)[1:-1], method="higher"))
    place = np.searchsorted(edges, n, side="right")
    classes = []
    for number in np.unique(place):
        mine = place == number
        part = Spent(spent.rates[mine], spent.times[mine])
        (rate, times), epsilon = find_worst(part, noise_multiplier, delta)
        classes.append(ClientClass(int(n[mine].min()), int(n[mine].max()), int(mine.sum()), rate, times, epsilon))
    return classes


def find_worst(spent: Spent, noise_multiplier: float, delta: float) -> tuple[tuple[float, int], float]:
    """Return the (rate, times) of the client that spends most, and its epsilon."""
    fronts = [(spent._replace(rates=np.array([r]), times=np.array([t])), (r, t)) for r, t in spent.front()]
    found = [(pair, one.worst(noise_multiplier, delta)) for one, pair in fronts]
    return max(found, key=lambda each: each[1], default=((float(spent.rates.max()), 0), 0.0))


def describe_guarantee(privacy: PrivacySettings, *, remote: bool) -> str:
    """Return in a sentence what is guaranteed, to whom, and by which mechanism."""
    if privacy.unit == "client":
        what = "each client, against all who see the model but the server, which is trusted and adds the noise"
        how = "each client counts as drawn in every round" if remote else "clients are drawn with rate S / N a round"
    else:
        what = "each sample, against the server and all who see what clients send; clients add the noise"
        how = "a client's samples are drawn with rate B / n in each step; that not all clients work counts for nothing"
    return f"differential privacy of {what}; {how}"


def list_assumptions(privacy: PrivacySettings, *, remote: bool) -> list[str]:
    """Return what the guarantee assumes, a sentence each."""
    found = ["One sample more or less: numbers of samples, steps and rounds are public."]
    if privacy.unit == "client":
        found = ["One client more or less: numbers of clients and rounds are public; who took part in a round is not."]
        if remote:
            found = ["All data of one client, or none: numbers of clients and rounds, and who takes part, are public."]
    if not remote:
        found.append("Noise is drawn from the seed, which others can find out: a simulation is for study.")
    return [*found, "Tuning settings on the same data spends more, which is not counted."]
