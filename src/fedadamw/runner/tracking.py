"""Sends records to experiment trackers (TensorBoard, W&B, MLflow, ...) through accelerate."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from fedadamw.engine.record import Record
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.section import flatten_settings
from fedadamw.validation import InputError, missing_extra_error, suggest


def check_trackers(names: Sequence[str], *, here: bool = True) -> None:
    """Raise InputError if a tracker is unknown or, if the run will be `here`, its library is not installed."""
    if not names:
        return
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        from accelerate.utils import LoggerType
    except ImportError:
        if not here:
            return
        raise missing_extra_error("trackers need accelerate", "track") from None
    from accelerate.tracking import get_available_trackers

    known = [str(kind) for kind in LOGGER_TYPE_TO_CLASS]
    ready = [str(kind) for kind in get_available_trackers() if kind != LoggerType.ALL]
    for name in names:
        if name not in known:
            raise InputError(f"trackers: {name!r} is unknown{suggest(name, known)}; use {', '.join(known)}")
        if here and name not in ready:
            raise InputError(f"trackers: {name!r} needs its library: pip install {name}")


class Trackers:
    """The trackers of one run; without any, accelerate is not imported."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._trackers: list[Any] = []
        if not experiment.trackers:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()
        for name in experiment.trackers:
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            options = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            tracker = kind(folder.name, **options)
            tracker.start()
            tracker.store_init_configuration(_columns(experiment.model_dump(mode="json")))
            self._trackers.append(tracker)

    def log(self, record: Record) -> None:
        """Log a record at its round."""
        columns = _columns({k: v for k, v in asdict(record).items() if k != "round" and v is not None})
        numbers = {k: v for k, v in columns.items() if not isinstance(v, str)}
        for tracker in self._trackers:
            tracker.log(numbers, step=record.round)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _columns(values: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return nested values by path, of the types that every tracker takes."""
    return {path: v if isinstance(v, int | float | str) else str(v) for path, v in flatten_settings(values)}
