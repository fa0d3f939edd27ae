"""How a run counts the gradients of carried moments: found at its start, written to its manifest, kept when it resumes.

Where clients take unequal numbers of steps, they are counted by q (algorithms/counter.py). Runs of versions that knew
no q have no `counter` in their manifest, and go on with the mean number of steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from fedadamw.checkpoint import CheckpointError
from fedadamw.prepare.counter import is_told_unequal_steps, tell_unequal_steps
from fedadamw.prepare.simulation import Prepared
from fedadamw.validation import shorten

BY_Q: Literal["q"] = "q"


def keep_counter(prepared: Prepared, started: Mapping[str, Any] | None) -> Prepared:
    """Return what is prepared with the counter of the run that `started`, on every rank.

    started: the run's manifest on rank 0, None for a new run and on other ranks.
    """
    unequal = is_told_unequal_steps(prepared.algorithm)
    if started is not None:
        written = started.get("counter")
        if written not in (None, BY_Q):
            raise CheckpointError(f"manifest.json: counter={shorten(written)} is unknown; a run has {BY_Q!r} or none")
        unequal = written == BY_Q
    number = torch.tensor([float(unequal)], device=prepared.device)
    prepared.ranks.broadcast([number])
    algorithm = tell_unequal_steps(prepared.algorithm, prepared.halves, unequal=bool(number))
    return replace(prepared, algorithm=algorithm)
