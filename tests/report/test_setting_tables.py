"""Which settings a page shows."""

import pytest

from fedadamw.report.setting_tables import select_used
from fedadamw.settings.load import load


@pytest.mark.parametrize(
    ("changes", "shown", "hidden"),
    [
        ([], {"partition.concentration", "data.flip", "model.name"}, {"partition.minimum", "partition.column"}),
        (["partition.kind=iid"], {"partition.clients"}, {"partition.concentration", "partition.classes_per_client"}),
        (
            ["data.task=python", "partition.kind=python"],
            {"partition.clients", "model.blocks", "training.lr"},
            {"partition.concentration", "data.flip", "model.name", "lora", "federation.quorum"},
        ),
    ],
)
def test_a_page_shows_no_setting_that_the_run_does_not_use(changes, shown, hidden):
    paths = {path for path, _ in select_used(load("digits", changes).model_dump(mode="json"))}
    assert shown <= paths
    assert not hidden & paths
