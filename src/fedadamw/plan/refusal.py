"""Refuse a run that cannot fit on its device, before anything of it is loaded."""

import warnings
from typing import TYPE_CHECKING

from fedadamw.plan.bound import bound
from fedadamw.plan.room import GB, find_room
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError

if TYPE_CHECKING:
    from fedadamw.plan.plan import Plan


def check_fits(experiment: Experiment, ranks: int, hint: str = "--force runs it all the same") -> None:
    """Raise InputError, with what to change, if the run cannot fit; one that is clearly small enough is not planned.

    hint: how it can be run nevertheless.
    """
    if experiment.data.task == PYTHON:
        return  # model and data are in memory already
    room = find_room(experiment, ranks=ranks)
    sharing = ranks if room.device.type == "cpu" else 1
    most = bound(experiment)
    if room.free is None or (most is not None and sharing * (most + room.own) < room.free):
        return
    from fedadamw.plan.plan import make_plan  # imports what torch's compiler does, for half a second
    from fedadamw.plan.rehearsal import NotPlannedError

    try:
        plan = make_plan(experiment, ranks=ranks, room=room)
    except NotPlannedError as error:  # it may run
        warnings.warn(f"the memory of this run is not planned: {error}", stacklevel=2)
        return
    except InputError:
        return  # the run says what is wrong with its settings
    if not plan.fits:
        raise InputError(f"this run {describe_verdict(plan)}; {hint}")


def describe_verdict(plan: "Plan") -> str:
    """Return in one line whether the run fits, and if not, what to change."""
    from fedadamw.plan.advice import advise

    room, need = plan.room, _gb(plan.needed)
    if room.free is None:
        return f"needs {need}; the memory of {room.name} is not known"
    if plan.fits:
        return f"fits: it needs {need} of {_gb(room.free)} free on {room.name}"
    what, advice = f"needs {need}, and {room.name} has {_gb(room.free)} free", advise(plan)
    if not advice.settings:
        return f"{what}: take a smaller model or a larger device"
    changes = ", ".join(f"{s} ({_gb(n)})" for s, n in zip(advice.settings, advice.needed, strict=True))
    return f"{what}: set {changes}{'' if advice.fits else '; even that is too much'}"


def _gb(size: int) -> str:
    return f"{size / GB:,.2f} GB"
