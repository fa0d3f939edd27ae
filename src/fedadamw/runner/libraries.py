"""Imports what a run needs before it begins, so that ranks forked afterwards have it.

Most of the time until the first round is spent on importing torch and transformers, and a fifth of that on looking for
garbage: nearly all that an import makes stays.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedadamw.settings.experiment import Experiment


@contextmanager
def collector_paused(*, freeze: bool = False) -> Iterator[None]:
    """A block in which no garbage is collected. freeze: what there is at its end is never looked at again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if enabled:
            gc.enable()


def import_libraries(experiment: "Experiment") -> None:
    """Import what preparing this experiment imports in any case."""
    from fedadamw.models import vision
    from fedadamw.settings.data import PYTHON

    data, name = experiment.data, experiment.model.name
    if data.source != "digits" and data.task != PYTHON:
        import datasets  # noqa: F401
    if name in vision.NAMES:
        vision.import_classes(name)
    else:
        import transformers.modeling_utils  # noqa: F401


def import_all() -> None:
    """Import what nearly every run needs."""
    with collector_paused(freeze=True):
        import datasets  # noqa: F401

        from fedadamw.models import vision
        from fedadamw.runner import execute  # noqa: F401

        for name in vision.NAMES:
            vision.import_classes(name)
