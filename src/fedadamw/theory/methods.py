"""Algorithms for which theory gives a learning rate, read from the command line: `fedadamw:share=none,memory=1`."""

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any, NamedTuple

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.io.yaml_text import read_yaml
from fedadamw.theory.prediction import Point, Quadratic, best_lr
from fedadamw.validation import check, shorten, suggest


class Unit(NamedTuple):
    """How long an algorithm's step is for a learning rate of 1."""

    beta1: Callable[[Mapping[str, Any]], float]  # of momentum that restarts in each round
    adaptive: bool  # whether a step is divided by the root of v, which is sigma/sqrt(d) on the quadratic
    gain: Callable[[Mapping[str, Any]], float]  # by how much alignment or the server makes the steps longer


def _first_beta(settings: Mapping[str, Any]) -> float:
    return float(settings["betas"][0])


def _none(_: Mapping[str, Any]) -> float:
    return 0.0


def _one(_: Mapping[str, Any]) -> float:
    return 1.0


def _server_lr(settings: Mapping[str, Any]) -> float:
    return float(settings["server_lr"])


def _beta_of_reset(settings: Mapping[str, Any]) -> float:
    return _first_beta(settings) if settings["moments"] == "reset" else 0.0  # kept momentum weighs all gradients alike


def _outer_gain(settings: Mapping[str, Any]) -> float:
    return float(settings["outer_lr"] / (1 - settings["outer_momentum"]))


UNITS = {
    "fedadamw": Unit(_first_beta, adaptive=True, gain=lambda settings: 1 / (1 - settings["alpha"])),
    "local-adamw": Unit(_first_beta, adaptive=True, gain=_one),
    "local-adam": Unit(_first_beta, adaptive=True, gain=_one),
    "diloco": Unit(_beta_of_reset, adaptive=True, gain=_outer_gain),
    "fadamgc": Unit(_first_beta, adaptive=True, gain=_server_lr),
    "fedavg": Unit(_none, adaptive=False, gain=_one),
    "fedprox": Unit(_none, adaptive=False, gain=_one),
    "scaffold": Unit(_none, adaptive=False, gain=_server_lr),
    "fedcm": Unit(_none, adaptive=False, gain=_one),
}
DEFAULTS = ("fedadamw", "fedadamw:memory=1", "fedadamw:share=none", "local-adamw")


class Method(NamedTuple):
    """An algorithm with its settings."""

    label: str  # as it was given
    name: str
    settings: Mapping[str, Any]

    @property
    def beta1(self) -> float:
        """Decay of its momentum, 0 without."""
        return UNITS[self.name].beta1(self.settings)

    def make(self, blocks: Blocks) -> AnyAlgorithm:
        """Return the algorithm, with `blocks` if it needs them."""
        return registry.make(self.name, self.settings, blocks)

    def lr(self, problem: Quadratic, point: Point) -> float:
        """Return the learning rate by the rule for SGD, in units of this algorithm's steps."""
        unit = UNITS[self.name]
        scale = problem.sigma / sqrt(problem.d) if unit.adaptive else 1.0
        return best_lr(problem, point, self.beta1) * scale / unit.gain(self.settings)


def parse_method(text: str) -> Method:
    """Return the algorithm that `NAME` or `NAME:SETTING=VALUE,...` names; raises InputError if theory has none."""
    name, _, rest = text.strip().partition(":")
    hint = "" if name in registry.ALGORITHMS else suggest(name, UNITS)
    known = ", ".join(UNITS)
    check(name in UNITS, f"--algorithm {shorten(name)}: theory has no learning rate for it{hint}; use one of {known}")
    given = {"weight_decay": 0.0, **dict(_parse_setting(text, part) for part in rest.split(",") if part)}
    settings = registry.validate(name, given)
    check(settings.get("alpha", 0) < 1, f"--algorithm {text}: with alpha at 1 or above, alignment never ends")
    check(settings.get("share") not in ("m", "vm"), f"--algorithm {text}: theory has no rate for an m that is carried")
    always = settings.get("align", "always") == "always"
    check(always, f"--algorithm {text}: theory has no learning rate for alignment that depends on the updates")
    return Method(text.strip(), name, settings)


def _parse_setting(text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    check(bool(equals and key), f"--algorithm {shorten(text)}: give NAME:SETTING=VALUE, such as fedadamw:memory=1")
    return key.strip(), read_yaml(f"--algorithm {key}=...", value)
