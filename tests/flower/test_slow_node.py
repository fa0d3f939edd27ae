"""A buffered run with real processes: four nodes, one of them ten times slower, and a server that is killed."""

import json
import os
import signal

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support import flower_apps
from support.beds import collect_logs, records, server_apps, wait_until
from support.buffered_twin import assert_same_server, replay
from support.federated import told

from fedadamw import checkpoint
from fedadamw.engine.parts import read_state
from fedadamw.flower.local.testbed import LocalFederation
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load

NODES, SLOW, SLOW_S = 4, 3, 60
SETTINGS = [
    f"partition.clients={NODES}",
    f"training={{rounds: 500, clients_per_round: {NODES}, steps: 3, batch_size: 20, lr: 0.001}}",
    "threads=1",
    "device=cpu",
]
BUFFERED = ["training.aggregation=buffered", "training.buffer=2"]


@pytest.fixture
def bed(tmp_path):
    """A SuperLink and four nodes, of which the last waits a minute before each training."""
    with LocalFederation(tmp_path / "bed", NODES) as bed:
        bed.start_superlink()
        for node in range(NODES):
            bed.register(node)
            bed.start_node(node, {"threads": 1, **({"slow-s": SLOW_S} if node == SLOW else {})})
        yield bed


def events(out):
    path = out / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def answers_of(out, client, **facts):
    wanted = {"event": "counted", "client": client, **facts}
    return [event for event in events(out) if wanted.items() <= event.items()]


def durations(out, client):
    """Return the seconds that each job of a client took, from its asking to its answer."""
    begun = {event["job"]: event["time"] for event in events(out) if event["event"] == "asked"}
    return [event["time"] - begun[event["job"]] for event in answers_of(out, client)]


@pytest.mark.slow
def test_versions_advance_without_a_slow_node_whose_late_answers_count_also_after_the_server_was_killed(bed, tmp_path):
    app = flower_apps.write_app(tmp_path / "app", [*SETTINGS, *BUFFERED], client=flower_apps.LIARS)
    out = tmp_path / "run"
    run = bed.submit(app, {"out": str(out)})
    try:
        wait_until(lambda: answers_of(out, SLOW), 900, "an answer of the slow node")
        (late,) = answers_of(out, SLOW)
        wait_until(lambda: len(records(out)) > late["round"], 200, "the version after it")
        before = len(records(out))
        (process,) = server_apps(bed)
        os.kill(process, signal.SIGKILL)
        killed, answered = len(events(out)), len(answers_of(out, SLOW))
        assert before <= len(records(out)) <= before + 1
        run = bed.submit(app, {"out": str(out), "resume": True})
        wait_until(lambda: len(answers_of(out, SLOW)) > answered, 900, "an answer of the slow node to the resumed run")
        last = answers_of(out, SLOW)[-1]
        wait_until(lambda: len(records(out)) >= last["round"], 200, "the version that it counts in")
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{collect_logs(bed, run)}\n{events(out)[-60:]}") from None
    bed.flwr("stop", str(run), "bed")
    wait_until(lambda: not server_apps(bed), 60, "the end of the run")
    log = events(out)
    anew = [event for event in log[killed:] if event["event"] == "asked-anew"]
    resumed_at = anew[0]["round"]
    assert SLOW in [event["client"] for event in anew]
    first = [event for event in log if event["event"] == "counted" and event["round"] < late["round"]]
    assert {event["client"] for event in first} == set(range(NODES)) - {SLOW}
    assert late["version"] == 0
    assert late["staleness"] == late["round"] - 1 >= 2
    assert last["staleness"] >= 2
    fast = sorted(durations(out, 0))
    assert min(durations(out, SLOW)) > max(SLOW_S, 2 * fast[len(fast) // 2])  # ten times on a machine that is free
    counted = [
        event
        for place, event in enumerate(log)
        if event["event"] == "counted" and (place >= killed or event["round"] < resumed_at)
    ]
    assert_follows_jobs(out, counted)


def assert_follows_jobs(out, counted):
    """Assert that the model is what the jobs of the events give, version by version, and that records tell the same."""
    saved, facts = checkpoint.read(out / "checkpoint" / "state.safetensors", "checkpoint")
    twin = told(prepare(load("digits", SETTINGS)), unequal=True).simulation()
    server = read_state(twin.state.server, saved, "server", twin.state.server.x.device)
    assert_same_server(server, replay(twin, counted, facts["round"]))
    for record in records(out)[: facts["round"]]:
        jobs = [job for job in counted if job["round"] == record["round"]]
        assert (record["clients"], record["devices"]["counted"]) == (len(jobs), 2)
        assert record["devices"]["staleness_max"] == max(job["staleness"] for job in jobs)
