"""The section `devices`: how fast clients' devices are, how they are linked, and when they are there."""

from typing import Literal

from pydantic import Field, model_validator

from fedadamw.settings.section import Section
from fedadamw.validation import check

SHARES_SUM_TO = 1e-6  # how far the shares of the classes may be from 1
SHORTEST_STAY_S = 1e-3  # of a device: the virtual clock tells apart a few microseconds


class DeviceClassSettings(Section):
    """Devices of one kind."""

    share: float = Field(gt=0, le=1, description="Share of the clients that are of this class.")
    steps: int | None = Field(default=None, ge=1, description="Their local steps in a round. Null: training's.")
    speed: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="Factor of their speed.")


class SpeedSettings(Section):
    """How fast devices train."""

    kind: Literal["equal", "log-normal", "half-normal"] = Field(
        default="equal",
        description="How speeds differ. equal: not at all. log-normal: by a factor, see spread. half-normal: the time "
        "for a sample is half-normal, so a few devices are very fast.",
    )
    samples_per_s: float = Field(
        default=100.0,
        gt=0,
        allow_inf_nan=False,
        description="Speed of the median device: samples that it trains on, divided by the seconds that it takes.",
    )
    spread: float = Field(
        default=10.0,
        ge=1,
        allow_inf_nan=False,
        description="For log-normal: speed of a device faster than nine tenths of all, as a multiple of the speed of "
        "one slower than nine tenths. At least 1.",
    )
    jitter: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="How much a device's speed varies from job to job: the standard deviation of its logarithm.",
    )


class LinkSettings(Section):
    """How fast devices send and receive."""

    down_mbps: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Megabits a second to the median device. Null: messages take no time.",
    )
    up_mbps: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Megabits a second from the median device. Null: messages take no time.",
    )
    spread: float = Field(
        default=1.0,
        ge=1,
        allow_inf_nan=False,
        description="How links differ, log-normal, as a multiple like devices.speed.spread. 1: not at all.",
    )


class AvailabilitySettings(Section):
    """When devices are there."""

    kind: Literal["always", "daily", "trace"] = Field(
        default="always",
        description="When devices are there. always: at any time. daily: for a share of each day, each device at "
        "another time. trace: as a file says.",
    )
    online: float = Field(
        default=0.5, gt=0, le=1, description="For daily: share of a day in which a device is there, above 0, at most 1."
    )
    day_s: float = Field(
        default=86400.0, gt=0, allow_inf_nan=False, description="For daily and trace: seconds until all repeats."
    )
    trace: str | None = Field(
        default=None,
        description="For trace: a CSV file with columns device, from_s and to_s, a row for each time a device is "
        "there. Clients take its devices in turn. Null: no file.",
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability that a device leaves in the middle of a job, whose work is lost.",
    )


class DevicesSettings(Section):
    """Unequal devices, simulated by a virtual clock."""

    classes: dict[str, DeviceClassSettings] = Field(
        default={},
        description="Classes of devices by name, each with its share of the clients, and its steps or a factor of its "
        "speed: {phone: {share: 0.8, steps: 10, speed: 0.2}, laptop: {share: 0.2}}. Shares add up to 1. {}: one class.",
    )
    time_budget_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that a client trains in a round: it takes the local steps that its device manages in that "
        "time, at least one and at most training.steps. Null: all of them.",
    )
    speed: SpeedSettings = SpeedSettings()
    link: LinkSettings = LinkSettings()
    availability: AvailabilitySettings = AvailabilitySettings()
    trace: str | None = Field(
        default=None,
        description="A CSV file with a row for each device and columns of samples_per_s, down_mbps, up_mbps or class, "
        "which take the place of the settings of that kind. Clients take its rows in turn. Null: no file.",
    )

    @model_validator(mode="after")
    def _check_together(self) -> "DevicesSettings":
        total = sum(one.share for one in self.classes.values())
        near = not self.classes or abs(total - 1) < SHARES_SUM_TO
        check(near, f"devices.classes: the shares add up to {total:g}, not to 1")
        at = self.availability
        check(
            (at.kind == "trace") == (at.trace is not None), "devices.availability: give kind=trace and trace together"
        )
        check(
            at.kind != "daily" or at.online * at.day_s >= SHORTEST_STAY_S,
            f"devices.availability: online={at.online:g} of day_s={at.day_s:g} is less than {SHORTEST_STAY_S:g} s",
        )
        return self

    @property
    def sets_steps(self) -> bool:
        """Whether clients may take other numbers of local steps than training's."""
        return self.time_budget_s is not None or any(one.steps for one in self.classes.values())

    def mean_steps(self, steps: float) -> float:
        """Local steps of a client, on average over the classes, if training's are `steps`; without a time budget."""
        if not self.classes:
            return steps
        return sum(one.share * (one.steps or steps) for one in self.classes.values())
