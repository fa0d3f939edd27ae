"""Which kind of local step a run takes: chosen at its start, written to its manifest, and the same when it resumes."""

from typing import get_args

import torch

from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.step import SAVED_OF_PLAIN_S, Kind
from fedadamw.prepare.simulation import Prepared
from fedadamw.report.run_files import Manifest
from fedadamw.validation import shorten

KINDS: tuple[Kind, ...] = get_args(Kind)


def choose_step(prepared: Prepared, started: Manifest | None) -> Kind:
    """Return the kind of a run that starts now, or, with its manifest, of one that `started` earlier.

    Kinds differ by rounding, so a resumed run keeps its own, unless `compile` says otherwise. A manifest without one is
    of a version that had no fused steps.
    """
    if started is None:
        return prepared.choose_step()
    own = started.get("step") or ("compiled" if prepared.choose_step(SAVED_OF_PLAIN_S) == "compiled" else "plain")
    if own not in KINDS:
        raise CheckpointError(f"manifest.json: step={shorten(own)} is unknown; a run has one of {', '.join(KINDS)}")
    setting = prepared.experiment.compile
    if setting == "auto":
        return own
    return "compiled" if setting == "on" else ("fused" if own == "compiled" else own)


def share_step(kind: Kind, prepared: Prepared) -> Kind:
    """Return rank 0's kind, on every rank."""
    number = torch.tensor([float(KINDS.index(kind))], device=prepared.device)
    prepared.ranks.broadcast([number])
    return KINDS[int(number)]
