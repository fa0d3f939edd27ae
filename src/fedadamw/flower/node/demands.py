"""The privacy that a node itself demands of every run (--node-config), whatever the server says.

    privacy-unit     "sample": no run without differential privacy of samples
    privacy-noise    least noise multiplier
    privacy-epsilon  what all runs together may spend of these data, at privacy-delta (1e-5)

Each of them refuses runs without differential privacy of samples, evaluations, and sums of pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fedadamw.flower.protocol import DeclinedError, NodeConfig
from fedadamw.privacy.accountant import Mechanism, compute_epsilon
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.validation import check

PREFIX = "privacy"
KEYS = ("privacy-unit", "privacy-noise", "privacy-epsilon", "privacy-delta")
DELTA = 1e-5
CLIPS = (1e-9, 1e12)  # beyond these, float32 rounds what is clipped, or the noise, away


@dataclass(frozen=True)
class Demands:
    """What a node demands of every run that it takes part in."""

    samples: bool = False  # differential privacy of samples
    noise: float = 0.0  # least noise multiplier
    epsilon: float | None = None  # of all runs together
    delta: float = DELTA

    def check_run(self, privacy: PrivacySettings | None) -> None:
        """Raise DeclinedError if a run with these settings has less privacy than this node demands."""
        if not self.samples:
            return
        if privacy is None or privacy.unit != "sample":
            raise DeclinedError("it takes part only with privacy.unit=sample")
        noise, asked = privacy.noise_multiplier, "privacy.noise_multiplier"
        if noise is None or noise == 0:
            raise DeclinedError(f"it takes part only with a {asked} above 0")
        if noise < self.noise:
            more = f"{asked}={noise:g}, and privacy-noise={self.noise:g}"
            raise DeclinedError(f"{asked} is below what it demands", more)
        if not CLIPS[0] <= privacy.clip <= CLIPS[1]:
            raise DeclinedError(f"privacy.clip is not between {CLIPS[0]:g} and {CLIPS[1]:g}")

    def check_total(self, mechanisms: Iterable[Mechanism]) -> None:
        """Raise DeclinedError if these mechanisms together are above this node's budget."""
        if self.epsilon is None:
            return
        spent = compute_epsilon(mechanisms, self.delta)
        if not spent <= self.epsilon:
            more = f"with one more training epsilon would be {spent:.4g} at delta={self.delta:g}"
            told = "its own privacy budget does not cover another training"
            raise DeclinedError(told, f"{more}, and privacy-epsilon={self.epsilon:g}")


def is_about_privacy(key: str) -> bool:
    """Whether a key of a node's configuration is, perhaps misspelt as `privacy_epsilon`, one of privacy."""
    return key.strip().lower().startswith(PREFIX)


def read_demands(config: NodeConfig) -> Demands:
    """Return what a node's configuration demands; raises InputError if that is not clear."""
    unknown = [key for key in config if is_about_privacy(key) and key not in KEYS]
    check(not unknown, f"this node's {', '.join(unknown)} is unknown; use {', '.join(KEYS)}")
    unit = config.get("privacy-unit")
    check(
        unit in (None, "sample"), f"this node's privacy-unit is {unit!r}: the only one that it can see to is 'sample'"
    )
    noise = _read_number(config, "privacy-noise", "from 0")
    epsilon, delta = (
        _read_number(config, "privacy-epsilon", "above 0"),
        _read_number(config, "privacy-delta", "above 0"),
    )
    check(epsilon is None or epsilon > 0, "this node's privacy-epsilon is 0: give a number above 0")
    check(delta is None or epsilon is not None, "this node's privacy-delta is that of privacy-epsilon: give both")
    check(delta is None or 0 < delta < 1, f"this node's privacy-delta is {delta!r}: give a number above 0 and below 1")
    given = any(key in config for key in KEYS)
    return Demands(given, noise or 0.0, epsilon, DELTA if delta is None else delta)


def _read_number(config: NodeConfig, key: str, allowed: str) -> float | None:
    value = config.get(key)
    valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    check(value is None or valid, f"this node's {key} is {value!r}: give a number {allowed}")
    return None if value is None else float(value)
