"""Finished runs of long measurements travel in the repository."""

import json

import pytest

from benchmarks.common import finished


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "COMMITTED", tmp_path / "results")
    monkeypatch.setattr(finished, "ROOT", tmp_path / "here")
    return tmp_path


def files_of(folder) -> dict[str, object]:
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_runs_that_ended_in_two_places_are_all_restored_and_own_ones_stay(checkout):
    for place, runs in (("a", {"one.json": {"score": 1.5}}), ("b", {"two.json": {"score": None}, "one.json": [2]})):
        folder = checkout / place / "runs" / "instruct"
        folder.mkdir(parents=True)
        for name, result in runs.items():
            (folder / name).write_text(json.dumps(result))
        finished.keep("instruct", checkout / place)
    assert len(finished.path_of("instruct").read_text().splitlines()) == 2
    own = checkout / "here" / "runs" / "instruct"
    own.mkdir(parents=True)
    (own / "two.json").write_text('{"score": 7}')
    finished.restore("instruct")
    assert files_of(own) == {"one.json": [2], "two.json": {"score": 7}}


def test_nothing_is_restored_or_kept_where_no_run_has_ended(checkout):
    finished.restore("evidence")
    assert finished.keep("evidence", checkout) == 0
    assert list(checkout.iterdir()) == []
