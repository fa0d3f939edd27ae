"""partition.json: what the page of a run says of its clients' data, of all of them and however many there are."""

import json

import numpy as np
import pytest

from fedadamw.report.client_mix import describe_classes
from fedadamw.report.run_files import MAX_CLIENTS
from fedadamw.runner.partition_file import NAME, read_mix, read_partition, write_partition


@pytest.mark.parametrize("clients", [3, MAX_CLIENTS + 50])
def test_sizes_and_classes_of_all_clients_are_read_back(tmp_path, clients):
    counts = np.random.default_rng(0).integers(0, 9, (clients, 5))
    write_partition(tmp_path, counts, list("abcde"))
    shown, classes = read_partition(tmp_path)
    assert shown.tolist() == counts[:MAX_CLIENTS].tolist()
    mix = read_mix(tmp_path)
    assert mix.samples.tolist() == counts.sum(1).tolist()
    assert np.allclose(mix.largest_share, counts.max(1) / np.maximum(counts.sum(1), 1))
    last = counts[-1]
    assert describe_classes(mix, clients - 1).startswith(f"{classes[last.argmax()]} ({last.max() / last.sum():.0%})")


def test_a_damaged_mix_leaves_that_of_the_first_clients(tmp_path):
    write_partition(tmp_path, np.ones((MAX_CLIENTS + 1, 2), int), ["a", "b"])
    content = json.loads((tmp_path / NAME).read_text())
    for damage in ({"top": [[5, 6]]}, {"held": []}, {"samples": "?"}):
        (tmp_path / NAME).write_text(json.dumps({**content, "mix": {**content["mix"], **damage}}))
        assert len(read_mix(tmp_path).samples) == MAX_CLIENTS
    (tmp_path / NAME).write_text("{")
    assert read_mix(tmp_path) is None
