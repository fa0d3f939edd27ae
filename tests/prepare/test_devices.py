"""Settings of devices that would change nothing are refused, in place of being ignored."""

import pytest

from fedadamw.prepare.checks import check_settings
from fedadamw.settings.load import load
from fedadamw.validation import InputError


@pytest.mark.parametrize(
    ("name", "value", "needs"),
    [
        ("speed.spread", 20.0, "kind=log-normal"),
        ("link.spread", 20.0, "down_mbps or up_mbps"),
        ("availability.online", 0.2, "kind=daily"),
        ("availability.day_s", 100.0, "kind=daily or trace"),
    ],
)
def test_a_setting_that_does_not_act_is_refused(name, value, needs):
    with pytest.raises(InputError, match=f"devices.{name}={value} acts only with {needs}"):
        check_settings(load("digits", [f"devices.{name}={value}"]), remote=False)


def test_settings_that_act_together_are_taken():
    devices = "devices={speed: {kind: log-normal, spread: 20}, link: {up_mbps: 3, spread: 20}}"
    day = ["devices.availability.kind=daily", "devices.availability.online=0.2", "devices.availability.day_s=100"]
    check_settings(load("digits", [devices, *day]), remote=False)


def test_a_stay_that_the_clock_cannot_see_is_refused():
    day = ["devices.availability.kind=daily", "devices.availability.online=1e-15"]
    with pytest.raises(InputError, match="online=1e-15 of day_s=86400 is less than 0.001 s"):
        load("digits", day)
