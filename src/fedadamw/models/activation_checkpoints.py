"""Gradient checkpointing: a layer's activations are computed again in backward instead of kept."""

from typing import Any

from torch import nn

from fedadamw.validation import InputError

SETTING = "training.gradient_checkpointing"


def checkpoint_layers(model: nn.Module, name: str) -> None:
    """Make `model` keep only the inputs of its layers while it trains; raises InputError if it has no such layers.

    name: the model's, for the error. Random numbers are drawn again as they were, so no number changes.
    """
    adapted: Any = model
    body = adapted.get_base_model() if hasattr(model, "get_base_model") else adapted  # below peft's adapters
    if not getattr(body, "supports_gradient_checkpointing", False):
        raise InputError(f"{SETTING}: {name!r} has no layers that can be computed again; leave it out")
    enable = getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(f"{SETTING}: {name!r}: {error}") from None
    if hasattr(body, "disable_input_require_grads"):  # which only reentrant checkpoints of a frozen embedding need
        body.disable_input_require_grads()
