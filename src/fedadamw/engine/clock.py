"""Puts simulated clients under the virtual clock that settings ask for."""

from collections.abc import Sequence

import numpy as np

from fedadamw.devices.fleet import Fleet
from fedadamw.engine.buffered import BufferedClients
from fedadamw.engine.clients import Clients
from fedadamw.engine.parts import InTurn
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.timed import TimedClients
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.training import TrainingSettings


def with_clock(
    clients: SimulatedClients | InTurn,
    fleet: Fleet,
    training: TrainingSettings,
    federation: FederationSettings,
    sizes: Sequence[int] | np.ndarray,
    seed: int,
) -> Clients:
    """Return `clients` as buffered or timed ones; as they are if rounds are synchronous and no devices are set.

    sizes: samples of each client.
    """
    if training.buffered:
        assert isinstance(clients, SimulatedClients)  # halves in turn are refused, see prepare/buffered.py
        return BufferedClients(clients, fleet)
    if fleet.settings is None:
        return clients
    return TimedClients(clients, fleet, training, federation, sizes, seed=seed)
