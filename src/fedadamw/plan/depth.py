"""Deep language models are rehearsed with some of their layers, twice; what the layers between the two add is added
for all others: as layers are alike, the bytes of every part grow with their number."""

from dataclasses import replace
from typing import Any, NamedTuple

from fedadamw.plan.counted import Counts
from fedadamw.plan.meter import Parts
from fedadamw.prepare.problem import open_pretrained
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.lora import ALL_LINEAR

FEWEST = 4  # layers: with fewer the peak may be elsewhere


class Depth(NamedTuple):
    """How many layers a model has, and with how many it is rehearsed first; the second time with twice as many."""

    layers: int
    few: int

    @property
    def more(self) -> float:
        """How often what the second rehearsal adds has to be added to the first."""
        return (self.layers - self.few) / self.few


def find_depth(experiment: Experiment) -> Depth | None:
    """Return the depth of a model that is rehearsed in part; None for one that is not deep, or whose layers differ."""
    pretrained = open_pretrained(experiment) if experiment.data.is_text else None
    lora: Any = experiment.lora
    if pretrained is None or (lora is not None and _names_layers(lora)):
        return None
    layers = getattr(pretrained.config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        return None
    period = max((_period(kinds) for kinds in lists_of_layers(pretrained.config).values()), default=1)
    few = -(-FEWEST // period) * period
    return Depth(layers, few) if layers % period == 0 and layers > 2 * few else None


def _names_layers(lora: Any) -> bool:
    """Whether adapters are chosen by patterns, which may name single layers."""
    named = isinstance(lora.target_modules, str) and lora.target_modules != ALL_LINEAR
    return named or bool(lora.rank_pattern or lora.alpha_pattern)


def lists_of_layers(config: Any) -> dict[str, list[Any]]:
    """Return the settings of a configuration that say something of each layer."""
    layers = config.num_hidden_layers
    return {name: value for name, value in vars(config).items() if isinstance(value, list) and len(value) == layers}


def _period(kinds: list[Any]) -> int:
    """Return after how many layers their kinds repeat."""
    return next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))


def with_layers(config: Any, layers: int | None) -> dict[str, object]:
    """Return the changes of a configuration to so many layers; None: no change."""
    if layers is None:
        return {}
    return {"num_hidden_layers": layers, **{name: kinds[:layers] for name, kinds in lists_of_layers(config).items()}}


def extend(few: Counts, twice: Counts, more: float) -> Counts:
    """Return the counts of a model of all layers, from those with few and with twice as many."""
    names = ("saved", "down_bytes", "up_bytes", "memory", "state")
    numbers: dict[str, Any] = {name: _extend(getattr(few, name), getattr(twice, name), more) for name in names}
    phases = {name: _extend_parts(parts, twice.phases[name], more) for name, parts in few.phases.items()}
    return replace(few, **numbers, phases=phases, between=_extend_parts(few.between, twice.between, more))


def _extend(few: int, twice: int, more: float) -> int:
    return round(few + (twice - few) * more)


def _extend_parts(few: Parts, twice: Parts, more: float) -> Parts:
    parts = {name: _extend(few.get(name, 0), twice.get(name, 0), more) for name in {**few, **twice}}
    return {name: max(size, 0) for name, size in parts.items()}
