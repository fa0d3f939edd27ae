"""In which types weights are: a frozen base in its own, what is trained in float32, and what passes between them."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Quantize = Literal["none", "8bit", "4bit"]


class Weights(NamedTuple):
    """How the weights of a model come into memory."""

    fresh: bool = False  # drawn at random; else from the model's files
    dtype: torch.dtype = torch.float32  # of all that is not quantised
    quantize: Quantize = "none"  # linear layers but the output's
    compute: torch.dtype = torch.float32  # that 4-bit layers are multiplied in


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type as settings have it: bfloat16."""
    return str(dtype).removeprefix("torch.")


def is_half(dtype: torch.dtype) -> bool:
    """Whether a type has 16 bits: sums of small steps would be lost in it."""
    return dtype in (torch.bfloat16, torch.float16)


def join_types(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return `model`, whose base has `dtype`, ready to take inputs of any type.

    Of a model with adapters, what is trained becomes float32. The adapters cast what they take and give. So do modules
    that are trained as a whole: inside the base they give `dtype`, a head gives float32. BatchNorm is float32 in any
    case. A float32 model is not changed.
    """
    if not is_half(dtype):
        return model
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.float()
    for name, module in _whole_modules(model):
        module.float()
        module.register_forward_pre_hook(_cast_inputs(torch.float32), with_kwargs=True)
        if "." in name:
            module.register_forward_hook(_cast_output(dtype))
    for parameter in model.parameters() if hasattr(model, "peft_config") else ():
        if parameter.requires_grad and is_half(parameter.dtype):
            parameter.data = parameter.data.float()
    model.register_forward_pre_hook(_cast_inputs(dtype), with_kwargs=True)
    return model


def _whole_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The copies that peft trains of whole modules, by these modules' names in the model without adapters."""
    prefix, suffix = "base_model.model.", ".modules_to_save.default"
    return [
        (name.removeprefix(prefix).removesuffix(suffix), module)
        for name, module in model.named_modules()
        if name.endswith(suffix)
    ]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _cast_inputs(dtype: torch.dtype) -> Any:
    """A hook that casts what a module takes."""

    def cast(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(_cast(a, dtype) for a in args), {name: _cast(value, dtype) for name, value in kwargs.items()}

    return cast


def _cast_output(dtype: torch.dtype) -> Any:
    """A hook that casts the tensor that a module gives."""
    return lambda _module, _args, output: _cast(output, dtype)
