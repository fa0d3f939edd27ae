"""Which runs are the same: settings that act only under some others."""

import pytest

from fedadamw.runner.digest import settings_digest
from fedadamw.settings.load import load

DEADLINE = "federation.deadline_s=20"


@pytest.mark.parametrize(
    ("given", "acts"),
    [
        ([], False),
        (["devices.speed.kind=log-normal"], True),
        (["devices.speed.kind=log-normal", "training.aggregation=buffered"], False),
    ],
)
def test_a_deadline_makes_another_run_only_where_it_acts_in_the_simulator(given, acts):
    digests = {settings_digest(load("digits", [*given, *own])) for own in ([], [DEADLINE], ["federation.retries=3"])}
    assert len(digests) == (2 if acts else 1)
