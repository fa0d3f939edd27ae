"""Adapters of which a client trains a part: halves in turn (lora.aggregate=alternate), unequal ranks (lora.ranks).

A client of rank q has the first q rows of A and the first q columns of B, and its layers compute W + alpha / q B A.
Smaller factors are padded with zeros in the mean (arXiv 2401.06432). With lora.aggregate=exact the server adds the mean
of the products to W, which is what stacking the factors gives (FLoRA, arXiv 2409.05976); the rows of A that a client
lacks then stay as they were: padded, those that few clients have would vanish, as B starts from 0 again in each round.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.parts import Half, Halves
from fedadamw.engine.portions import Portion
from fedadamw.engine.workspace import Workspace
from fedadamw.models.lora.checks import ADAPTER
from fedadamw.models.lora.means import split_factors
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.lora import LoraSettings
from fedadamw.validation import check
from fedadamw.vector import Layout, trainable


def assign_ranks(ranks: Mapping[int, float] | Sequence[int], clients: int, seed: int) -> list[int]:
    """Return the rank of each client: as listed, or by shares of the clients, which are then drawn from the seed.

    Numbers of clients are rounded so that they add up, the largest remainders first.
    """
    if not isinstance(ranks, Mapping):
        check(len(ranks) == clients, f"lora.ranks lists {len(ranks)} clients; the partition has {clients}")
        return list(ranks)
    exact = {rank: share * clients for rank, share in sorted(ranks.items())}
    counts = {rank: int(count + 1e-9) for rank, count in exact.items()}
    by_remainder = sorted(exact, key=lambda rank: counts[rank] - exact[rank])
    for rank in by_remainder[: clients - sum(counts.values())]:
        counts[rank] += 1
    every = [rank for rank, count in counts.items() for _ in range(count)]
    order = numpy_generator(seed, Purpose.RANKS).permutation(clients)
    return [every[place] for place in order]


class RankPortions:
    """The portion of each client in a model whose adapters have the largest rank. ranks: of the clients."""

    def __init__(self, model: nn.Module, lora: LoraSettings, ranks: Sequence[int], like: Tensor) -> None:
        self.pads = lora.aggregate != "exact"
        self._ranks, self._lora, self._like = ranks, lora, like
        self._layout = Layout.of(model)
        layers: list[Any] = [module for module in model.modules() if _is_adapter(module)]
        self._scaled = [(layer, float(layer.scaling[ADAPTER])) for layer in layers]
        self._portion_of_rank = cache(self._make_portion)

    def of(self, client: int) -> Portion:
        """Return the portion of `client`."""
        return self._portion_of_rank(self._ranks[client])

    def scale(self, client: int) -> float:
        """Return how much more a client's adapters are scaled than those of the largest rank."""
        return self._scale(self._ranks[client])

    def set_up(self, portion: Portion | None) -> None:
        """Scale the module's adapters as those of a client with this portion; None: as with the largest rank."""
        factor = 1.0 if portion is None else self._scale(portion.number)
        for layer, scaling in self._scaled:
            layer.scaling[ADAPTER] = scaling * factor

    def _scale(self, rank: int) -> float:
        ratio = self._lora.r / rank
        return float(ratio**0.5) if self._lora.rslora else ratio

    def _make_portion(self, rank: int) -> Portion:
        mask = torch.ones_like(self._like)
        named = self._layout.views(mask)
        a, b = split_factors(self._layout.names)
        for name in a:
            named[name][rank:] = 0
        for name in b:
            named[name][:, rank:] = 0
        return Portion(rank, mask, mask.nonzero().flatten())


def _is_adapter(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer) and ADAPTER in module.scaling


def build_portions(experiment: Experiment, workspace: Workspace, clients: int) -> RankPortions | None:
    """Return the clients' portions of the model with lora.ranks; None without."""
    lora = experiment.lora
    if lora is None or lora.ranks is None:
        return None
    ranks = assign_ranks(lora.ranks, clients, experiment.seed)
    return RankPortions(workspace.module, lora, ranks, workspace.y)


def build_halves(
    experiment: Experiment, workspace: Workspace, build_algorithm: Callable[[Experiment, nn.Module], AnyAlgorithm]
) -> Halves | None:
    """Return the halves that train in turn with lora.aggregate=alternate, B first; None without."""
    if experiment.lora is None or experiment.lora.aggregate != "alternate":
        return None
    model, layout = workspace.module, workspace.layout
    halves = []
    for resting in split_factors(layout.names):
        for name, parameter in trainable(model).items():
            parameter.requires_grad = name not in resting
        algorithm = build_algorithm(experiment, model)
        halves.append(Half(Workspace(model), algorithm, layout, experiment.training.outer))
        workspace.attach()
    return Halves(workspace, *halves)
