"""What to change, in which order, so that a run fits."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from fedadamw.plan.plan import Plan, make_plan
from fedadamw.settings.describe import to_yaml
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import parse_settings, set_path
from fedadamw.validation import InputError

SHORT = 512  # tokens
LEAST = 0.5  # bytes a number of a frozen base in the fewest bits
WORTH = 0.97  # a change is named if it leaves less than this share of what is needed
Value = Callable[[Experiment], object]  # the new value of a setting; None: it does not help here


class Advice(NamedTuple):
    """Settings to change, and what is needed after each change."""

    settings: tuple[str, ...]  # as -s takes them
    needed: tuple[int, ...]  # bytes
    fits: bool


def _micro_batch(experiment: Experiment) -> object:
    t = experiment.training
    return 1 if (t.micro_batch or t.batch_size) > 1 else None


def _evaluate_batch(experiment: Experiment) -> object:
    return 1 if experiment.training.evaluate_batch != 1 else None


def _memory_on_disk(experiment: Experiment) -> object:
    return "disk" if experiment.client_memory != "disk" else None


def _half_length(experiment: Experiment) -> object:
    length = experiment.data.max_length
    if not experiment.data.is_text:
        return None
    return length // 2 if isinstance(length, int) and length >= SHORT else SHORT


def _checkpointing(experiment: Experiment) -> object:
    return True if not experiment.training.gradient_checkpointing else None


def _half_type(experiment: Experiment) -> object:
    return "bfloat16" if experiment.lora is not None and experiment.model.dtype in ("auto", "float32") else None


def _four_bits(experiment: Experiment) -> object:
    return "4bit" if experiment.lora is not None and experiment.model.quantize == "none" else None


def _adapters(experiment: Experiment) -> object:
    return 16 if experiment.lora is None and experiment.data.is_text else None


CHANGES: tuple[tuple[str, Value], ...] = (  # those that change no number of the run first
    ("client_memory", _memory_on_disk),
    ("training.micro_batch", _micro_batch),
    ("training.evaluate_batch", _evaluate_batch),
    ("training.gradient_checkpointing", _checkpointing),
    ("lora.r", _adapters),
    ("model.dtype", _half_type),
    ("model.quantize", _four_bits),
    ("data.max_length", _half_length),
)


def advise(plan: Plan) -> Advice:
    """Return the changes that make `plan` fit, or all that help if it never does; none if no weights could fit."""
    if plan.room.free is not None and _least(plan) > plan.room.free:
        return Advice((), (), fits=False)
    settings: list[str] = []
    needed: list[int] = []
    for setting, changed in _changed(plan):
        settings.append(setting)
        needed.append(changed.needed)
        plan = changed
        if plan.fits:
            break
    return Advice(tuple(settings), tuple(needed), plan.fits)


def _least(plan: Plan) -> float:
    """Return the bytes that the model's weights take at least, whatever is changed."""
    numbers = plan.rehearsal.trained + plan.rehearsal.frozen
    return LEAST * numbers / plan.experiment.shards


def _changed(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Each change that helps, on top of those before, and the plan with it."""
    for path, choose in CHANGES:
        value = choose(plan.experiment)
        if value is None:
            continue
        settings = plan.experiment.model_dump(mode="json")
        set_path(settings, path, value)
        try:
            changed = make_plan(parse_settings(settings), ranks=plan.ranks, room=plan.room, data=plan.data)
        except InputError:
            continue  # this model or task does not take it
        if changed.needed < WORTH * plan.needed:
            plan = changed
            yield f"{path}={to_yaml(value)}", changed
