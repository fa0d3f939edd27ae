"""The page of a run with many clients in a real browser: charts of cells, a table, nothing on its console."""

import json

import numpy as np
import pytest
from support.studies import MANIFEST, of_clients

from fedadamw.report.client_scores import NAME
from fedadamw.report.run_page import RunPage
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load

CLIENTS = 1000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("clients"), np.random.default_rng(0)
    run, experiment = RunFolder(folder), load("digits", ["training.rounds=4", f"partition.clients={CLIENTS}"])
    facts = {**MANIFEST, "partition": {"clients": CLIENTS, "fingerprint": "00"}}
    run.start(experiment, facts)
    for record in of_clients([0.5, 0.7]):
        run.append(record)
    columns = {"clients": list(range(CLIENTS)), "samples": [5] * CLIENTS, "loss": [1.0] * CLIENTS}
    lines = [{"round": r, **columns, "accuracy": rng.random(CLIENTS).round(3).tolist()} for r in (2, 4)]
    (folder / NAME).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    counts = rng.geometric(0.01, (CLIENTS, 4)) * rng.integers(0, 2, (CLIENTS, 4))
    settings = experiment.model_dump(mode="json")
    RunPage(folder, settings, facts, counts, ["a", "b", "c", "<b>d"]).write(run.records())
    return folder / "report.html"


def test_charts_of_many_clients_are_drawn_without_console_errors_on_a_phone(chromium, page):
    shown = chromium.new_context(viewport={"width": 390, "height": 900}, offline=True).new_page()
    said: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.goto(page.as_uri())
    shown.wait_for_function("document.querySelectorAll('canvas, svg.marks').length >= 7", timeout=30_000)
    assert [line for line in said if "favicon" not in line] == []
    for name in ("spread", "sorted", "by-samples", "by-classes"):
        assert shown.locator(f"#{name} :is(canvas, svg.marks)").count() == 1, name
    assert shown.locator(".clients tbody tr").count() == 10
    assert shown.locator(".clients p").inner_text().startswith("The 10 worst of 1,000 clients by accuracy in round 4")
    assert shown.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "no sideways scrolling"
    shown.close()


def test_the_page_stays_small(page):
    specs = page.read_text().partition('id="specs">')[2].partition("</script>")[0]
    of_clients = {name: len(json.dumps(json.loads(specs)["charts"][name])) for name in ("sorted", "by-samples")}
    assert all(size < 60_000 for size in of_clients.values()), of_clients
