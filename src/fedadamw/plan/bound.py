"""An upper bound of what a run needs, from its configuration alone and in no time: most runs are far below memory."""

from typing import Any, NamedTuple

import torch

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms import registry
from fedadamw.algorithms.classes import NO_BLOCKS
from fedadamw.models.skeleton import build_skeleton
from fedadamw.models.vision import NAMES
from fedadamw.plan.data_shape import find_max_length
from fedadamw.plan.room import GB
from fedadamw.prepare.architecture import resolve_model
from fedadamw.prepare.problem import open_pretrained
from fedadamw.prepare.texts import evaluation_size
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.lora import LoraSettings

WORD = 4  # bytes of a float32
VECTORS = 20  # that a round holds at most, of the trained numbers, besides memories
MEMORY_COPIES = 5  # of each client's memory: two rounds', and what writes a checkpoint
WITH_RESIDUAL = ("int8", "top-k")  # uploads of which clients keep what is lost
BUILT_IN = 30_000_000  # numbers; no built-in model has more
IMAGES_AT_ONCE = 3 * GB  # activations of a batch of small images
WIDTHS, MLP_WIDTHS, LOGITS = 40, 8, 8  # numbers a token and layer that are kept, in widths of the model; and a token


class Sizes(NamedTuple):
    """A transformer's sizes, as most configurations name them."""

    width: int
    mlp: int
    layers: int
    heads: int
    words: int

    @property
    def numbers(self) -> int:
        """At least as many as the model has."""
        return 2 * self.words * self.width + self.layers * (5 * self.width**2 + 3 * self.width * self.mlp)

    def adapters(self, lora: LoraSettings) -> int:
        """At least as many as adapters of all layers have, with an output that is trained too.

        All numbers, if the base is also part of the state or modules of unknown size are trained.
        """
        if lora.changes_base or lora.modules_to_save:
            return self.numbers
        of_layer, rank = 12 * self.width + 4 * self.mlp, max([lora.r, *lora.rank_pattern.values()])
        return min(self.numbers, rank * (self.layers * of_layer + 2 * self.words) + self.width * self.width)


def bound(experiment: Experiment) -> int | None:
    """Return bytes that one rank of the run stays below; None if that cannot be said so fast."""
    if experiment.personal is not None and experiment.personal.parameters:
        return None  # what clients keep of their own depends on the model
    try:
        kept = _count_kept(experiment)
    except Exception:  # another package's algorithm need not work on a vector of no numbers
        if experiment.algorithm_name in registry.BUILT_IN:
            raise
        return None
    model, vectors = resolve_model(experiment.model), _vectors(experiment, kept)
    if model.name in NAMES:  # only if clients keep vectors, it is worth building
        numbers = sum(p.numel() for p in build_skeleton(model.name).parameters()) if kept else BUILT_IN
        return WORD * vectors * numbers + IMAGES_AT_ONCE
    pretrained = open_pretrained(experiment)
    sizes = None if pretrained is None or not experiment.data.is_text else _read_sizes(pretrained.config)
    if sizes is None or pretrained is None:
        return None
    trained = sizes.numbers if experiment.lora is None else sizes.adapters(experiment.lora)
    longest = find_max_length(experiment, pretrained)
    return WORD * (sizes.numbers + vectors * trained + _activations(experiment, sizes, longest))


def _vectors(experiment: Experiment, kept: int) -> int:
    """Vectors of the trained numbers that a round holds, clients' memories included, and a checkpoint's copies.

    kept: those that a client keeps between its rounds.
    """
    t = experiment.training
    clients = min(experiment.partition.clients, t.rounds * t.clients_per_round)
    stacked = (experiment.stack or 1) * VECTORS
    return VECTORS + stacked + MEMORY_COPIES * clients * kept


def _count_kept(experiment: Experiment) -> int:
    """How many vectors a client keeps between its rounds, at most: a counter is as long here."""
    algorithm = registry.make(*registry.parse_section(experiment.algorithm), NO_BLOCKS)
    residuals = len(algorithm.changes) if experiment.training.upload in WITH_RESIDUAL else 0
    if type(algorithm).client_init is Algorithm.client_init:
        return residuals
    nothing = torch.zeros(0)  # a model of the length that NO_BLOCKS has
    return residuals + len(algorithm.client_init(algorithm.broadcast(algorithm.server_init(nothing))))


def _activations(experiment: Experiment, sizes: Sizes, longest: int) -> int:
    t = experiment.training
    texts = max(min(t.micro_batch or t.batch_size, t.batch_size), evaluation_size(experiment)) * (experiment.stack or 1)
    layer = WIDTHS * sizes.width + MLP_WIDTHS * sizes.mlp + 4 * sizes.heads * longest
    output = LOGITS * sizes.words if experiment.data.task == LANGUAGE else 0
    return texts * longest * (sizes.layers * layer + output)


def _read_sizes(config: Any) -> Sizes | None:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    found: list[Any] = [getattr(config, name, None) for name in names]
    return Sizes(*found) if all(isinstance(n, int) for n in found) else None
