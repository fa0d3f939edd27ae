"""A frozen base in 8 or 4 bits, by bitsandbytes: which layers, how they are loaded or drawn, and made whole again."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedadamw.blocks.names import HEAD, TOP_LEVEL_HEAD
from fedadamw.models.dtypes import Quantize, Weights
from fedadamw.models.loading import as_input_error
from fedadamw.validation import InputError, check, missing_extra_error

METHOD = "bitsandbytes"
BLOCK = 64  # numbers of a 4-bit weight that share a scale


def check_library(what: str) -> None:
    """Raise InputError with pip's command unless bitsandbytes, and accelerate, which it needs, are installed."""
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise missing_extra_error(f"{what} needs bitsandbytes", "quant")


def own_quantisation(name: str, config: Any) -> Quantize:
    """Return how the files of model `name` are quantised already; raises InputError if not by bitsandbytes."""
    own = getattr(config, "quantization_config", None)
    if own is None:
        return "none"
    with as_input_error(f"model.name={name!r}: its quantization_config cannot be read"):
        settings = own if isinstance(own, dict) else own.to_dict()
        method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method", METHOD)))
    check(
        method == METHOD,
        f"model.name={name!r}: its weights are quantised by {method}, and only those of {METHOD} are read; name the "
        "model that they were made from, with -s model.quantize=4bit",
    )
    check_library(f"model.name={name!r}")
    return "4bit" if settings.get("load_in_4bit") else "8bit"


def linear_layers(model: nn.Module, quantize: Quantize = "none") -> Iterator[tuple[str, Any]]:
    """Yield name and module of linear layers that are quantised: not heads, nor what has the weights of a table.

    Nor, in 4 bits, those whose rows are not whole blocks of numbers: on a CPU they would be read wrongly.
    """
    block = BLOCK if quantize == "4bit" else 1
    output = getattr(model, "get_output_embeddings", lambda: None)()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        head = name.split(".")[0] in HEAD | TOP_LEVEL_HEAD
        if not _is_linear(module) or module is output or head:
            continue
        weight = cast("Any", module).weight
        row = weight.shape[0] if _is_conv1d(type(module)) else weight.shape[1]
        if id(weight) not in tables and row % block == 0:
            yield name, module


def _is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or _is_conv1d(type(module))


def _is_conv1d(kind: type) -> bool:
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")  # a linear layer, transposed


def is_packed(module: nn.Module) -> bool:
    """Whether a layer's weights are quantised; peft's layers around such ones have the same name."""
    return type(module).__module__.startswith("bitsandbytes.") and isinstance(module, nn.Linear)


def quantisation(skeleton: nn.Module, weights: Weights) -> Any:
    """Return transformers' configuration that quantises a model like `skeleton`: NF4 and double scales in 4 bits."""
    check_library(f"model.quantize={weights.quantize}")
    from transformers import BitsAndBytesConfig

    quantised = {name for name, _ in linear_layers(skeleton, weights.quantize)}
    rows = f" with rows of a multiple of {BLOCK} numbers" if weights.quantize == "4bit" else ""
    check(bool(quantised), f"model.quantize={weights.quantize}: the model has no linear layer{rows} below its head")
    others = [name for name, module in skeleton.named_modules() if _is_linear(module) and name not in quantised]
    kept = [re.escape(name) for name in others]
    if weights.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=weights.compute,
        llm_int8_skip_modules=kept,
    )


def draw_quantised(skeleton: Any, how: Any) -> Any:
    """Fill `skeleton`, a model on the meta device, with fresh weights, quantised as `how` one layer after the other."""
    dtype = skeleton.dtype
    replace_layers(skeleton, how)
    _draw(skeleton, skeleton, skeleton.all_tied_weights_keys, "", dtype)
    skeleton.tie_weights()
    return skeleton


def replace_layers(model: Any, how: Any) -> None:
    """Put layers of bitsandbytes in place of those that `how` quantises; their weights have to be filled in."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(model, how.llm_int8_skip_modules, how)
    _mark(model, how)


@torch.no_grad()
def pack(model: Any, how: Any) -> Any:
    """Return a loaded model, quantised as `how` one layer after the other."""
    whole = list(linear_layers(model, "4bit" if how.load_in_4bit else "8bit"))
    replace_layers(model, how)
    while whole:
        name, layer = whole.pop()
        _fill(model.get_submodule(name), layer.weight.t() if _is_conv1d(type(layer)) else layer.weight, layer.bias)
    return model


def _mark(model: Any, how: Any) -> None:
    """Note in a quantised model, for peft and transformers, how it is quantised."""
    setattr(model, "is_loaded_in_4bit" if how.load_in_4bit else "is_loaded_in_8bit", True)
    model.config.quantization_config = how
    settle(model)


def _fill(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Quantise a weight (out, in) into a layer of bitsandbytes."""
    old = layer.weight
    layer.weight = type(old)(weight.detach(), requires_grad=False, **_settings_of(old)).to("cpu")
    layer.weight._is_hf_initialized = True  # whoever initialises by name leaves it alone
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)


@torch.no_grad()
def _draw(owner: Any, module: Any, tied: Any, name: str, dtype: torch.dtype) -> None:
    """Give `module` and all inside it weights on the CPU, as `owner`, the model of transformers around it, draws them.

    tied: the names of parameters that get other ones' weights afterwards.
    """
    from transformers import PreTrainedModel

    for key, child in module.named_children():
        inner = child if isinstance(child, PreTrainedModel) else owner
        _draw(inner, child, tied, f"{name}.{key}" if name else key, dtype)
    if is_packed(module):
        shape = module.in_features, module.out_features, module.bias is not None
        plain = nn.Linear(*shape, device="meta", dtype=dtype).to_empty(device="cpu")
        owner._init_weights(plain)
        _fill(module, plain.weight, plain.bias)
    elif not any(f"{name}.{key}" in tied for key in module._parameters):
        module.to_empty(device="cpu", recurse=False)
        owner._init_weights(module)


def _settings_of(parameter: Any) -> dict[str, Any]:
    """The arguments with which a parameter of bitsandbytes was made."""
    return {key: value for key, value in parameter.__dict__.items() if key != "SCB" and not key.startswith("_")}


def settle(model: Any) -> Any:
    """Return a quantised model whose 4-bit layers keep one form: evaluating on a CPU would repack them for good."""
    for module in model.modules():
        if is_packed(module) and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def row_by_row(model: nn.Module) -> Iterator[None]:
    """A context in which no row of a batch affects another: 8-bit layers do not look for outliers in all of them."""
    states = [cast("Any", module).state for module in model.modules() if is_packed(module) and hasattr(module, "state")]
    thresholds = [state.threshold for state in states]
    for state in states:
        state.threshold = 0.0
    try:
        yield
    finally:
        for state, threshold in zip(states, thresholds, strict=True):
            state.threshold = threshold


def place_on(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model`, moved to the device, with what 8-bit layers keep beside their weights."""
    model.to(device)
    for module in model.modules():
        if is_packed(module) and hasattr(module, "state"):
            for holder in (cast("Any", module).weight, cast("Any", module).state):
                for name in ("CB", "SCB"):
                    kept = getattr(holder, name, None)
                    if isinstance(kept, Tensor):
                        setattr(holder, name, kept.to(device))
    return model


@torch.no_grad()
def merge(adapted: Any, dtype: torch.dtype) -> Any:
    """Return the model without adapters, all of it in `dtype`: their products are added to the weights that they adapt.

    Quantised weights are made whole first, so that what is added is not quantised.
    """
    from peft.tuners.lora import LoraLayer

    base = adapted.get_base_model()
    for name, module in list(base.named_modules()):
        if isinstance(module, LoraLayer) and is_packed(module.get_base_layer()):
            added = [module.get_delta_weight(adapter) for adapter in module.active_adapters]
            check(not module.lora_variant, "adapters with DoRA are not merged into a quantised base")
            base.set_submodule(name, _whole(module.get_base_layer(), added, dtype))
    model = adapted.merge_and_unload()
    for name, module in list(model.named_modules()):
        if is_packed(module):
            model.set_submodule(name, _whole(module, [], dtype))
    _forget_quantisation(model)
    return model.to(dtype)


def _whole(layer: Any, added: list[Tensor], dtype: torch.dtype) -> nn.Module:
    """Return a quantised layer as one of its own kind, with `added`, (out, in) each, in its weights."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None)).float()
    weight = sum(added, weight).to(dtype)
    kind = getattr(layer, "source_cls", nn.Linear)
    whole = kind(layer.out_features, layer.in_features) if _is_conv1d(kind) else _empty_linear(layer)
    whole.weight = nn.Parameter(weight.t().contiguous() if _is_conv1d(kind) else weight)
    if layer.bias is not None:
        whole.bias = nn.Parameter(layer.bias.to(dtype))
    return cast("nn.Module", whole)


def _empty_linear(layer: Any) -> nn.Linear:
    return nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")


def _forget_quantisation(model: Any) -> None:
    """Remove what transformers keeps of a quantisation: the model is saved as a whole one."""
    for holder, names in (
        (model, ("hf_quantizer", "is_quantized", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit")),
        (model.config, ("quantization_config", "_is_quantized")),
    ):
        for name in names:
            holder.__dict__.pop(name, None)


def refuse_whole(quantize: Quantize) -> InputError:
    """Return the error for training all of a quantised model."""
    return InputError(
        f"model.quantize={quantize}: a quantised model is not trained as a whole; train adapters: -s lora.r=16"
    )


def forget_tables() -> None:
    """Forget the tables of types that bitsandbytes keeps once it has made them: fake ones have no numbers."""
    for place, name in (("functional", "name2qmap"), ("backends.utils", "_code_4bit_cache")):
        getattr(sys.modules.get(f"bitsandbytes.{place}"), name, {}).clear()
    bounds: Any = getattr(sys.modules.get("bitsandbytes.backends.default.ops"), "_get_4bit_quantize_bounds", None)
    if hasattr(bounds, "cache_clear"):
        bounds.cache_clear()
