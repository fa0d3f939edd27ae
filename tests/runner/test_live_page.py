"""The page of a run while it goes on: rewritten after rounds, on a stop and on an error, at no risk for the run."""

import html
import re
import warnings
from pathlib import Path

import pytest
from support.run_folders import read_records

from fedadamw.runner import live_page
from fedadamw.runner.execute import Interrupted, execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load

SMALL = ["training.steps=1", "training.clients_per_round=2", "training.evaluate_every=3", "threads=1"]


@pytest.fixture
def every_round(monkeypatch):
    """A page after every round."""
    monkeypatch.setattr(live_page, "MIN_PAUSE_S", 0.0)
    monkeypatch.setattr(live_page, "PAUSE_PER_COST", 0)


def read_status(folder: Path) -> str | None:
    """What the page says above its numbers; None if there is no page."""
    page = folder / "report.html"
    return re.search("role=status>([^<]*)", page.read_text())[1] if page.is_file() else None


def run(folder: Path, rounds: int, on_round=lambda _: None, **options) -> list[str | None]:
    """Run digits; return what the page said when each round ended, and in the end."""
    said: list[str | None] = []

    def listen(record):
        said.append(read_status(folder))
        on_round(record)

    try:
        execute(
            load("digits", [f"training.rounds={rounds}", *SMALL]),
            RunFolder(folder),
            on_round=listen,
            **{"resume": False, **options},
        )
    finally:
        said.append(read_status(folder))
    return said


@pytest.mark.usefixtures("every_round", "restore_threads")
def test_the_page_follows_the_rounds_and_changes_no_number(tmp_path):
    folder = tmp_path / "run"
    none, *running, finished = run(folder, 4)
    assert none is None
    assert [re.sub(r"about \d+ s", "about N s", text) for text in running] == [
        f"running: round {done} of 4, about N s left" for done in (1, 2, 3)
    ]
    assert finished == ""
    run(tmp_path / "other", 4, report=False)
    assert read_records(folder) == read_records(tmp_path / "other")


@pytest.mark.usefixtures("every_round", "restore_threads")
def test_a_stopped_run_leaves_a_page_that_says_how_to_resume_it(tmp_path):
    folder = tmp_path / "two words"

    def stop(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(folder, 4, stop)
    said = read_status(folder)
    assert said == f"stopped after round 2 of 4; resume with: fedadamw run --resume --out &#x27;{folder}&#x27;"
    assert run(folder, 4, resume=True)[-1] == ""


@pytest.mark.usefixtures("every_round", "restore_threads")
def test_a_failed_run_leaves_a_page_that_says_why(tmp_path):
    def fail(record):
        raise RuntimeError("it <broke>\nin two lines")

    with pytest.raises(RuntimeError, match="it <broke>"):
        run(tmp_path / "run", 4, fail)
    assert read_status(tmp_path / "run").startswith("failed after round 1 of 4: it &lt;broke&gt;; resume with: ")


@pytest.mark.usefixtures("every_round", "restore_threads")
def test_a_page_that_cannot_be_written_is_reported_once_and_the_run_goes_on(tmp_path):
    folder = tmp_path / "run"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(IsADirectoryError):  # of the last page
            run(folder, 3, on_start=lambda _: (folder / "report.html").mkdir())
    assert len([w for w in caught if "report.html was not written: " in str(w.message)]) == 1
    assert len(read_records(folder)) == 3


@pytest.mark.usefixtures("restore_threads")
def test_a_run_of_seconds_writes_one_page_at_its_end(tmp_path):
    assert run(tmp_path / "run", 3) == [None, None, None, ""]


@pytest.mark.usefixtures("every_round", "restore_threads")
def test_the_page_reloads_itself_and_keeps_its_place(tmp_path, chromium):
    folder = tmp_path / "run"
    page = chromium.new_context(viewport={"width": 390, "height": 600}, offline=True).new_page()

    def look(record):
        if record.round == 3:  # the page is of round 2
            page.goto((folder / "report.html").as_uri())
            assert page.locator(".status").inner_text().startswith("running: round 2 of 4")
            assert page.locator("#score").inner_text() == "No evaluation so far."
            page.wait_for_function("document.querySelectorAll('svg.marks').length >= 2")
            page.evaluate("scrollTo(0, 400)")

    run(folder, 4, look)
    page.wait_for_function("document.querySelector('.status').textContent === ''", timeout=30_000)
    page.wait_for_function("scrollY === 400", timeout=10_000)
    assert not page.locator(".status").is_visible()


def test_a_run_from_python_that_a_callback_stopped_is_resumed_from_python(tmp_path):
    from support.own_objects import simulate

    folder = tmp_path / "run"
    simulate(out=folder, callbacks=[lambda record: record.round == 1])
    assert html.unescape(read_status(folder)).endswith(
        f"; resume with the same call of fedadamw.simulate, out={str(folder)!r} and resume=True"
    )
    assert (folder / "curves.png").exists()
