"""A folder served while runs begin, go on and end in it: what it shows, and what it refuses to show."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from support.studies import MANIFEST, rounds, study_of

from fedadamw.runner.client_losses import ClientLosses
from fedadamw.runner.execute import Interrupted, execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.validation import InputError
from fedadamw.watch import server as served
from fedadamw.watch import state
from fedadamw.watch.server import Server

EVALUATED = ({"accuracy": 0.5}, {"accuracy": 0.75})
SMALL = ["training.rounds=4", "training.steps=1", "training.clients_per_round=2", "threads=1"]


@pytest.fixture
def serve(monkeypatch):
    """serve(folder): a server of it, whose snapshots are always new."""
    monkeypatch.setattr(served, "REST_PER_COST", 0)
    monkeypatch.setattr(served, "MIN_REST_S", 0.0)

    @contextmanager
    def serving(folder):
        with Server(folder, "127.0.0.1", 0) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return serving


def get(server, path: str = "api/", host: str | None = None):
    """The status and text of a page."""
    request = urllib.request.Request(server.url + path, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask(server, path: str = "api/"):
    status, text = get(server, path)
    assert status == 200, text
    return json.loads(text)


def begin(folder, *settings: str) -> RunFolder:
    """The folder of a run of four rounds, without records."""
    run = RunFolder(folder)
    run.start(load("digits", ["training.rounds=4", *settings]), MANIFEST)
    return run


@pytest.mark.usefixtures("restore_threads")
def test_a_run_is_seen_from_before_it_starts_until_it_ends(tmp_path, serve):
    folder, seen = tmp_path / "run", []
    with serve(folder) as server:
        waiting = ask(server)
        assert (waiting["state"], waiting["line"]) == ("waiting", "waiting for the run to start")
        execute(
            load("digits", [*SMALL, "training.evaluate_every=2"]),
            RunFolder(folder),
            resume=False,
            on_round=lambda _: seen.append(ask(server)),
        )
        finished = ask(server)
        status, report = get(server, "report/")
        assert (status, report) == (200, (folder / "report.html").read_text())
    assert [list(now["charts"]) for now in seen] == [
        ["losses", "clients", "last"],
        *[["score", "losses", "clients", "last"]] * 3,
    ]
    assert [now["progress"] for now in seen] == [0.25, 0.5, 0.75, 1.0]
    assert seen[1]["line"].startswith("running: round 2 of 4, about ")
    assert len(seen[2]["charts"]["clients"]["data"]["values"]) == 2 * 3
    assert sum(row[1] for row in seen[2]["clients"]) == 2 * 3
    assert (finished["state"], finished["line"]) == ("finished", "finished: 4 rounds")
    assert len(finished["logs"]["Rounds"]) == 4
    assert finished["logs"]["Rounds"][1].startswith("round 2/4  loss ")


@pytest.mark.usefixtures("restore_threads")
def test_a_stopped_run_says_how_to_resume_it(tmp_path, serve):
    def stop(_record):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        execute(load("digits", SMALL), RunFolder(tmp_path), resume=False, on_round=stop)
    with serve(tmp_path) as server:
        now = ask(server)
    assert now["state"] == "stopped"
    assert now["line"] == f"stopped after round 1 of 4; resume with: fedadamw run --resume --out {tmp_path}"


def test_a_run_goes_on_while_its_lock_is_held_or_there_was_news(tmp_path, monkeypatch):
    run = begin(tmp_path)
    for record in rounds(EVALUATED)[:2]:
        run.append(record)
    assert state.find_state(tmp_path, run.records(), 4).name == "running", "there was news"
    monkeypatch.setattr(state, "MIN_SILENCE_S", -100.0)
    assert state.find_state(tmp_path, run.records(), 4).name == "stopped"
    if state.LOCKS.exists():
        with run.lock():
            assert state.find_state(tmp_path, run.records(), 4).name == "running"
        assert state.find_state(tmp_path, run.records(), 4).name == "stopped", "looking left no lock"
    (tmp_path / "report.html").write_text("<p class=status role=status>failed after round 2 of 4: &lt;why&gt;</p>")
    assert state.find_state(tmp_path, run.records(), 4) == ("failed", "failed after round 2 of 4: <why>")


def test_a_federations_events_and_clients_are_shown_as_text(tmp_path, serve):
    run = begin(tmp_path)
    for record in rounds(EVALUATED)[:2]:
        run.append(record)
    ClientLosses(tmp_path).append(1, {3: 0.5, 4: None})
    ClientLosses(tmp_path).append(2, {3: 0.25})
    hostile = "\x1b[31m<b>\u202e"
    lines = [json.dumps({"time": 0.0, "event": "refused", "client": 3, "reason": hostile}), "not JSON", "[]"]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    with serve(tmp_path) as server:
        now = ask(server)
    refused, *others = now["logs"]["Events"]
    assert refused[8:] == r"  refused  client=3 reason=\x1b[31m<b>\u202e"
    assert others == ["not JSON", "[]"]
    assert now["clients"] == [[4, 1, 1, None, None], [3, 2, 2, 0.25, 0.375]]


def test_a_studys_runs_are_listed_and_each_is_a_page(tmp_path, serve):
    runs = study_of(tmp_path / "runs", fedavg=EVALUATED, fedadamw=EVALUATED)
    begin(tmp_path / "runs" / "a b & c")
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.yaml").write_text("training: 1")
    with serve(tmp_path) as server:
        now = ask(server)
        states = {row["path"].removeprefix("runs/"): row["state"] for row in now["runs"]}
        assert states == {**{run.name: "finished" for run in runs}, "a b & c": "running", "damaged": "failed"}
        assert now["line"] == "2 of 4 runs that began are finished"
        assert next(row for row in now["runs"] if row["state"] == "finished")["score"] == "accuracy 75.00%"
        assert ask(server, f"api/run/runs/{runs[0].name}")["title"] == runs[0].name
        assert ask(server, "api/run/runs/a%20b%20%26%20c")["line"] == "running: the first round"
        assert ask(server, "api/run/runs/damaged")["line"].endswith("has not the settings of a run")


def test_only_this_folders_runs_are_served(tmp_path, serve):
    begin(tmp_path / "study" / "one")
    begin(tmp_path / "secret")
    with serve(tmp_path / "study") as server:
        for path in ("api/run/../secret", "api/run/..%2fsecret", "report/run/one", "one/config.yaml", "api/one"):
            assert get(server, path)[0] == 404, path
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
        connection.request("POST", "/api/", b"{}", {"Host": "localhost"})
        assert connection.getresponse().status == 501
        connection.close()


def test_other_sites_names_are_refused(tmp_path, serve):
    with serve(tmp_path) as server:
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "", "]["):
            assert get(server, host=host) == (403, served.REFUSAL.decode()), host
        for host in ("localhost", "LOCALHOST:9000", "127.0.0.1:9000", "[::1]:9000", socket.gethostname()):
            assert get(server, host=host)[0] == 200, host


def test_what_cannot_be_served_is_one_line(tmp_path, run_main):
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_main("watch", str(tmp_path), "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --port {port}: is in use; give another, or 0 for any that is free\n"
    assert "is a file" in run_main("watch", str(tmp_path / "file")).stderr
    with pytest.raises(InputError, match="--port 99999: give 1 to 65535"):
        Server(tmp_path, "127.0.0.1", 99999)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_serves_until_it_is_stopped(tmp_path, number, code):
    command = [sys.executable, "-m", "fedadamw", "watch", str(tmp_path / "later"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().split()[3]
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "<title>fedadamw watch</title>" in answer.read().decode()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_browser_draws_the_charts_and_follows_the_run(tmp_path, serve, chromium, width):
    folder = tmp_path / "<img src=x onerror='hostile=1'>"
    run, losses, said = begin(folder), ClientLosses(folder), []
    first, second, *_ = rounds(EVALUATED)
    losses.append(1, {0: 1.0, 1: None})
    run.append(first)
    with serve(folder) as server:
        page = chromium.new_context(viewport={"width": width, "height": 900}).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.url)
        page.wait_for_function("document.querySelectorAll('svg.marks').length === 3", timeout=30_000)
        assert page.locator("h1").inner_text() == folder.name
        red = page.locator("#clients svg path[fill='#dc2626']").count()
        assert red == 1, "the client whose answer was not accepted"
        losses.append(2, {0: 0.5, 2: 0.25})
        run.append(second)
        page.wait_for_function("document.querySelectorAll('svg.marks').length === 4", timeout=30_000)
        page.wait_for_function("document.querySelectorAll('#table tr').length === 4")
        assert page.locator("#line").inner_text().startswith("round 2 of 4")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        inside = (
            "s => s.every(c => c.getBoundingClientRect().right <= c.closest('.panel').getBoundingClientRect().right)"
        )
        page.wait_for_function(f"({inside})([...document.querySelectorAll('svg.marks')])", timeout=10_000)
        assert page.evaluate("window.hostile") is None
        page.close()
    assert said == []
