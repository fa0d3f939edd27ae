"""What a part measures with: each measurement is guarded, saved as soon as it is there, and left out if time is up."""

import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, ParamSpec

import torch

from benchmarks.measure.gpu.record import CUT_OFF, DONE, FAILED, Found, Record
from fedadamw.engine.device_memory import is_out_of_memory, release_memory

TAIL = 6  # lines of a traceback that the record keeps
P = ParamSpec("P")


class SkippedError(Exception):
    """This machine lacks something that the measurement needs; the message says what."""


class WrongError(Exception):
    """Two numbers that must agree do not; `found` has them."""

    def __init__(self, message: str, found: Found) -> None:
        super().__init__(message)
        self.found = found


class DeviceLostError(RuntimeError):
    """The device answers nothing any more in this process."""


class Bench(NamedTuple):
    """A part's view of the run."""

    record: Record
    part: str
    device: torch.device
    small: bool  # small shapes: everything runs, and its times mean nothing
    until: float  # when the part's time is up, as time.time()

    def left(self) -> float:
        """Seconds that the part has left."""
        return self.until - time.time()

    def size(self, full: Any, small: Any) -> Any:
        """The shape, count or name to use."""
        return small if self.small else full

    def note(self, **facts: Any) -> None:
        """Save facts about the part."""
        self.record.parts[self.part] |= facts
        self.record.save()

    def measure(self, name: str, work: Callable[P, Found], *args: P.args, **settings: P.kwargs) -> Found | None:
        """Save what `work(...)` finds under `name`; None if it fails, whose reason is saved, or has no time."""
        row: Found = {}
        self.record.parts[self.part]["measured"][name] = row
        start = time.perf_counter()
        ok = False
        try:
            if self.left() <= 0:
                row["left_out"] = "the part's time was up"
            else:
                with noted_warnings(row):
                    row |= work(*args, **settings)
                ok = True
        except SkippedError as error:
            row["skipped"] = str(error)
        except Exception as error:
            row |= error.found if isinstance(error, WrongError) else {}
            row |= {"failed": describe(error), "traceback": tail_of(error)}
            if is_lost(error):
                raise DeviceLostError(describe(error)) from None
        finally:
            row["seconds"] = round(time.perf_counter() - start, 2)
            self.record.save()
        forget_compiled()
        release_memory()
        print(f"  {name}: {summarise(row)}", flush=True)
        return row if ok else None

    def verdict(self) -> tuple[str, str]:
        """How the part ended, and why if it is not done."""
        rows = self.record.parts[self.part]["measured"]
        failed, left = ([name for name, row in rows.items() if kind in row] for kind in ("failed", "left_out"))
        if failed:
            return FAILED, f"failed: {'; '.join(failed)}"
        if left:
            return CUT_OFF, f"there was no time for {len(left)} of {len(rows)} measurements"
        return DONE, ""


@contextmanager
def noted_warnings(row: Found) -> Iterator[None]:
    """A context whose warnings come into the row, such as that a compiler failed; each once."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=FutureWarning)  # of names that peft and transformers change
        try:
            yield
        finally:
            texts = dict.fromkeys(str(w.message).strip().splitlines()[0][:200] for w in seen if str(w.message).strip())
            if texts:
                row["warnings"] = list(texts)[:5]


def forget_compiled() -> None:
    """Forget what torch.compile has made: it makes eight forms of a function in a process, and no more."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


def describe(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def tail_of(error: BaseException) -> list[str]:
    """The last lines of an error's traceback, without its message."""
    places = traceback.extract_tb(error.__traceback__)
    return [f"{place.filename}:{place.lineno} {place.line}"[-200:] for place in places[-TAIL:]]


def is_lost(error: BaseException) -> bool:
    """Whether an error leaves the device unusable for this process: all of CUDA's but a full memory."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)


def summarise(row: Found) -> str:
    """A row in a few words."""
    for kind in ("failed", "skipped", "left_out"):
        if kind in row:
            return f"{kind.replace('_', ' ')}: {row[kind]}"
    shown = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float) and key != "seconds"]
    return ", ".join(shown[:6]) or "ok"


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes, all that it starts on the device included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start
