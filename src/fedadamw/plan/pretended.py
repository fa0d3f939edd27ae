"""The experiment's model without weights and its task without data: of the right shapes, and nothing is loaded.

Of a hub id or folder only its config.json is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fedadamw.data.image_decoding import MODEL_SIZE, OWN_SIZE
from fedadamw.data.images import Images
from fedadamw.data.text_tasks import LanguageTask, Padded
from fedadamw.data.texts import Texts
from fedadamw.models.dtypes import Weights, join_types, name_of
from fedadamw.models.loading import silence_libraries
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.output_layer import find_output_layer
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.processor import input_size
from fedadamw.models.quantized import forget_tables, is_packed, quantisation, replace_layers
from fedadamw.models.text import Form
from fedadamw.plan.data_shape import DataShape, find_max_length
from fedadamw.plan.depth import with_layers
from fedadamw.prepare import images, texts
from fedadamw.prepare.architecture import resolve_model
from fedadamw.prepare.base import choose_weights
from fedadamw.prepare.problem import ImageFacts, Problem, TextFacts, open_pretrained
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment

PLACE = torch.device("cpu")  # of fake tensors: kernels are those of a CPU


def build_problem(experiment: Experiment, data: DataShape, layers: int | None = None) -> Problem:
    """Return the model on the meta device, its task over pretended samples, and the facts of the data.

    layers: of a text model, if not all.
    """
    model = experiment.model.model_copy(update={"fresh": True})
    fresh = experiment.model_copy(update={"model": resolve_model(model)})
    silence_libraries()
    pretrained = open_pretrained(fresh)
    if not experiment.data.is_text:
        return _images(fresh, pretrained, data)
    return _texts(fresh, pretrained, data, layers)


def _images(experiment: Experiment, pretrained: Pretrained | None, data: DataShape) -> Problem:
    assert data.image is not None
    classes = tuple(f"class {i}" for i in range(data.classes))
    facts: ImageFacts = {"classes": classes, "shape": list(data.image), "fit": OWN_SIZE}
    if pretrained is not None:
        _learn_resizing(pretrained, data.image)
    size = None if pretrained is None else input_size(pretrained.config)
    if size is not None and experiment.data.image_size is None and size <= tuple(data.image[1:]):
        facts["shape"], facts["fit"] = [data.image[0], *size], MODEL_SIZE
    facts["mean"] = facts["std"] = (0.5,) * facts["shape"][0]
    weights = choose_weights(experiment, pretrained)
    plain = experiment.model.model_copy(update={"dtype": name_of(weights.dtype), "quantize": "none"})
    with torch.device("meta"):
        built = images.build_model(experiment.model_copy(update={"model": plain, "lora": None}), pretrained, facts)
        model = _adapt(experiment, pretrained, built.model, weights, None)
    at_once = experiment.training.evaluation_batch(500)
    train, test = (_blank_images(facts, n) for n in (1, min(at_once, data.held_out or at_once)))
    resident = experiment.model_copy(update={"data": experiment.data.model_copy(update={"resident": True})})
    return Problem(model, images.build_task(resident, built, train, test, PLACE, facts), facts)


def _learn_resizing(pretrained: Pretrained, shape: tuple[int, ...]) -> None:
    """Resize an image that has numbers: how Pillow does it is found out by trying, once, and then known."""
    fit = pretrained.processor.fit
    if fit is not None:
        fit.resize_batch(torch.zeros(1, *shape, dtype=torch.uint8))


def _adapt(
    experiment: Experiment, pretrained: Pretrained | None, model: nn.Module, weights: Weights, kind: str | None
) -> nn.Module:
    """Return a model on the meta device with quantised layers and adapters; kind: of task, as peft names it."""
    own = "none" if pretrained is None else pretrained.quantised
    quantize = weights.quantize if own == "none" else own
    if quantize != "none":
        replace_layers(model, quantisation(model, weights._replace(quantize=quantize)))
    if experiment.lora is not None:
        with whole_weights(experiment):
            model = add_adapters(model, experiment.lora, kind)
    return join_types(model, weights.dtype)


@contextmanager
def whole_weights(experiment: Experiment) -> Iterator[None]:
    """A block in which DoRA gets whole weights, without numbers, of quantised layers without numbers."""
    if experiment.lora is None or not experiment.lora.dora:
        yield
        return
    from peft.tuners.lora import dora

    usual = dora.dequantize_module_weight

    def whole(layer: nn.Module) -> Any:
        if not is_packed(layer):
            return usual(layer)
        weight: Any = layer.weight
        like = getattr(weight, "quant_state", None) or weight
        return torch.empty(like.shape, dtype=like.dtype, device=weight.device)

    dora.dequantize_module_weight = whole
    try:
        yield
    finally:
        dora.dequantize_module_weight = usual


def _blank_images(facts: ImageFacts, count: int) -> Images:
    """So many images that share one image's memory."""
    pixels = np.broadcast_to(np.zeros((1, *facts["shape"]), np.uint8), (count, *facts["shape"]))
    return Images(pixels, np.zeros(count, np.int64), tuple(facts["classes"]))


def _texts(experiment: Experiment, pretrained: Pretrained | None, data: DataShape, layers: int | None) -> Problem:
    texts.check_named(experiment)
    assert pretrained is not None
    language, longest = experiment.data.task == LANGUAGE, find_max_length(experiment, pretrained)
    numbers = experiment.data.task == "stsb"
    facts: TextFacts = {"classes": tuple(map(str, range(data.classes))), "edges": (0.0,) if numbers else None}
    weights = choose_weights(experiment, pretrained)
    outputs = 1 if numbers else data.classes
    model, form = _text_model(experiment, pretrained, outputs, longest, weights.dtype, layers)
    with torch.device("meta"):
        model = _adapt(experiment, pretrained, model, weights, "CAUSAL_LM" if language else "SEQ_CLS")
    at_once = texts.evaluation_size(experiment)
    train, test = (_blank_texts(facts, n, longest) for n in (1, min(at_once, data.held_out or at_once)))
    unpacked = experiment.data.model_copy(update={"packing": False})  # each text is as long as a row
    task: Any = texts.build_task(experiment.model_copy(update={"data": unpacked}), form, train, test, PLACE)
    task.texts, task.test_texts = (Longest(t, pad=form.pad, longest=longest, device=PLACE) for t in (train, test))
    return Problem(model, task, facts)


def _text_model(
    experiment: Experiment, pretrained: Pretrained, outputs: int, longest: int, dtype: torch.dtype, layers: int | None
) -> tuple[nn.Module, Form]:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS

    config = pretrained.config
    depth = with_layers(config, layers)
    pad = config.pad_token_id if isinstance(getattr(config, "pad_token_id", None), int) else 0
    if experiment.data.task == LANGUAGE:
        return pretrained.skeleton(AutoModelForCausalLM, dtype, **depth), Form(pad, longest)
    auto = AutoModelForSequenceClassification
    model = pretrained.skeleton(auto, dtype, pad_token_id=pad, num_labels=outputs, **depth)
    encoder = config.model_type in ENCODERS
    types = encoder and getattr(config, "type_vocab_size", 0) > 1
    return model, Form(pad, longest, mask="4d" if encoder else "none", types=types)


def _blank_texts(facts: TextFacts, count: int, longest: int) -> Texts:
    """So many texts of `longest` tokens that share one text's memory."""
    tokens, marks = np.zeros(longest, np.int32), np.ones(longest, np.int8)
    targets = None if facts["edges"] is None else np.zeros(count, np.float32)
    starts = np.zeros(count + 1, np.int64)
    labels = np.zeros(count, np.int64)
    return Texts(tokens, marks, starts, labels, tuple(facts["classes"]), targets)


class Longest(Padded):
    """Gathers texts that are all as long as the longest."""

    def gather(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return token numbers, marks and whether they are real, (n, longest) each; none is looked at."""
        ids, marks = (torch.zeros(len(samples), self.longest, dtype=kind) for kind in (torch.int64, torch.int8))
        return ids, marks, torch.ones(len(samples), self.longest, dtype=torch.bool)

    def iter_by_length(self, samples: Tensor, size: int) -> Iterator[Tensor]:
        """Iterate over the places of `samples` in batches."""
        return iter(torch.arange(len(samples)).split(size))


@contextmanager
def without_numbers() -> Iterator[FakeTensorMode]:
    """A block in which tensors are fake: they have shapes and types, and neither numbers nor memory."""
    try:
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        forget_tables()


@torch.no_grad()
def pretend(model: nn.Module) -> nn.Module:
    """Give a model on the meta device fake tensors, in place; call it inside of `without_numbers`."""
    made: dict[int, Any] = {}  # tied tensors stay tied
    module: Any
    for module in model.modules():
        if is_packed(module):
            _pack(module)
        for held in (module._parameters, module._buffers):
            for name, t in held.items():
                if t is not None and t.is_meta:
                    held[name] = made.setdefault(id(t), _fake(t))
    return model


def _pack(layer: Any) -> None:
    """Give a layer of bitsandbytes on the meta device a quantised fake weight: of torch's class, with its state."""
    from bitsandbytes import functional

    old, whole = layer.weight, _fake(layer.weight)
    if hasattr(old, "quant_type"):
        settings = {name: getattr(old, name) for name in ("blocksize", "compress_statistics", "quant_type")}
        packed, state = functional.quantize_4bit(whole, **settings)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.weight.quant_state = state
    else:
        packed, scales, _ = functional.int8_vectorwise_quant(whole.to(torch.float16))
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.weight.CB, layer.weight.SCB = packed, scales
        layer.state.threshold = 0.0  # which inputs are outliers depends on the numbers: none here


def find_output(model: Any, task: Any) -> None:
    """Give the task of a language model its output layer, whose losses may be computed in chunks, as a run does."""
    if isinstance(task, LanguageTask):
        body = model.get_base_model() if hasattr(model, "get_base_model") else model
        ids = torch.zeros(1, 8, dtype=torch.int64)
        layer = find_output_layer(body, ids, torch.empty(1, 8, body.config.vocab_size))
        task.form = task.form._replace(output=layer)


def _fake(t: Tensor) -> Any:
    there = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=PLACE)
    return nn.Parameter(there, t.requires_grad) if type(t) is nn.Parameter else there
