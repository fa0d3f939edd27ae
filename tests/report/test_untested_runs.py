"""A run that never tests one model for all is shown by the mean of its clients' scores, and says so."""

import numpy as np
import pytest
from support.studies import MANIFEST, of_clients

from fedadamw.cli import tables
from fedadamw.engine.record import Record
from fedadamw.flower.local import demo
from fedadamw.report.metrics import describe_last_score
from fedadamw.report.run_page import write_run_page
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.progress import Progress
from fedadamw.settings.load import load
from fedadamw.trained.card import find_results

UNTESTED = of_clients([0.5, 0.25], tested=False)
NEVER_SCORED = [Record(**{**vars(record), "clients_mean": None, "clients_metrics": None}) for record in UNTESTED]


@pytest.fixture
def folder(tmp_path):
    """An untested run that is done."""
    found = RunFolder(tmp_path / "run")
    found.start(load("digits", ["training.rounds=4"]), MANIFEST)
    for record in UNTESTED:
        found.append(record)
    return found


def test_progress_and_tables_name_the_mean_of_clients(folder, capsys):
    with Progress(load("digits", ["training.rounds=4"]).training, quiet=False) as progress:
        progress.start(0)
        for record in UNTESTED:
            progress.round(record)
    tables.print_run(folder.records())
    said = capsys.readouterr().out
    assert "round 3/4  loss 1.0000  mean accuracy of clients 50.00%" in said
    heading, first, _ = said.splitlines()[-3:]
    assert "mean accuracy of clients  worst tenth" in heading
    assert "test" not in heading
    assert "50.00%       30.00%" in first
    assert demo.format_record(folder.records()[-1]) == "round 4  loss 1.0000  mean accuracy of clients 25.00%  1.0 s"


def test_the_page_and_its_curves_show_the_mean_of_clients(folder):
    settings = load("digits", ["training.rounds=4"]).model_dump(mode="json")
    write_run_page(folder.path, folder.records(), settings, MANIFEST, np.zeros((0, 0), int), [])
    text = (folder.path / "report.html").read_text()
    for shown in ("<b>25.00%</b><span>mean accuracy of clients", "<b>50.00%, 2</b><span>best, in round"):
        assert shown in text
    assert '"title": "Mean accuracy of clients"' in text
    assert "clients' held-out loss" in text
    assert '"Test accuracy' not in text
    assert (folder.path / "curves.png").stat().st_size > 10_000


def test_a_model_card_has_the_scores_of_the_clients(folder):
    assert find_results(folder.records()) == (
        4,
        {"mean accuracy of clients": 0.25, "accuracy of the worst tenth of clients": pytest.approx(0.05)},
    )
    assert find_results([]) == (0, {"loss": None})


def test_a_run_without_any_score_is_shown_all_the_same(tmp_path, capsys):
    run = RunFolder(tmp_path)
    run.start(load("digits", ["training.rounds=4"]), MANIFEST)
    for record in NEVER_SCORED:
        run.append(record)
    tables.print_run(run.records())
    assert len(capsys.readouterr().out.splitlines()) == 5, "every round"
    assert describe_last_score(run.records()) == ""
    settings = load("digits", ["training.rounds=4"]).model_dump(mode="json")
    write_run_page(tmp_path, run.records(), settings, MANIFEST, np.zeros((0, 0), int), [])
    assert "No evaluation so far." in (tmp_path / "report.html").read_text()
