"""The section `privacy`: differential privacy of samples, or of clients."""

from typing import Literal

from pydantic import Field, model_validator

from fedadamw.settings.section import Section
from fedadamw.validation import check


class PrivacySettings(Section):
    """Differential privacy: what one sample, or one client, can change at most is hidden by noise."""

    unit: Literal["sample", "client"] = Field(
        default="sample",
        description="What is protected. sample: each sample, against the server and outsiders; clients add the noise. "
        "client: all that a client has, against outsiders; the server is trusted and adds the noise.",
    )
    clip: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="Clipping norm, C: the largest L2 norm of a sample's gradient, or of a client's update. Tune it.",
    )
    noise_multiplier: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Standard deviation of the noise, as a multiple of clip. Give either this or epsilon.",
    )
    epsilon: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Epsilon that the whole run may spend for any client, instead of noise_multiplier: the noise is "
        "the least that keeps to it.",
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="Delta of the guarantee (epsilon, delta); well below one over the number of samples, or clients.",
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Epsilon before which the run stops: no round begins that would exceed it. Null: no limit.",
    )
    debias: Literal["none", "subtract"] = Field(
        default="subtract",
        description="For unit=sample and algorithms with second moments: subtract the noise's known part from them, or "
        "leave it in.",
    )
    floor: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="For debias=subtract and for unit=client: the least second moment that is left, as a share of the "
        "noise's.",
    )
    moment_clip: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="For unit=client: clipping norm of each other field of an upload; of second moments, of their "
        "roots.",
    )
    quantile: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="For unit=client: adapt clip, from round to round, to this quantile of the norms of updates, which "
        "costs a little privacy (arXiv 1905.03871). Null: clip is fixed.",
    )

    @model_validator(mode="after")
    def _check_together(self) -> "PrivacySettings":
        one = (self.noise_multiplier is None) != (self.epsilon is None)
        check(one, "privacy: give one of noise_multiplier and epsilon")
        check(self.unit == "client" or self.quantile is None, "privacy.quantile is for privacy.unit=client")
        return self
