"""What a run can learn, each from settings to samples, model and task."""

from typing import Any, NamedTuple

from torch import nn

from fedadamw.task import Task


class Learned(NamedTuple):
    """A model, what it learns, and what must be known of its samples to build it again without them."""

    model: nn.Module
    task: Task
    about: dict[str, Any]  # JSON: classes, and what the kind of data adds
