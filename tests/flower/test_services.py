"""The services: what they pass on to Flower's, and what they mend in it."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

import httpx
from flwr.app import Message, RecordDict
from flwr.supercore.heartbeat import HeartbeatFailure
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory
from support import grids  # noqa: F401  (it tells Flower which process this is)

from fedadamw.flower.local import services
from fedadamw.flower.local import testbed as bed


@pytest.fixture
def take():
    """Flower's own function and ours around it."""
    flowers = start_client_internal._pull_and_store_message
    return {"flower": flowers, "ours": services.send_pending_replies(flowers)}


def named(message, name):
    message.metadata.__dict__["_message_id"] = name  # as Flower's does
    return message


def taken(take, state, objects, receive):
    """What the function says of a look for messages."""
    nothing = dict.fromkeys(["get_run", "get_fab", "pull_object", "confirm_message_received", "trusted_entities"])
    return take(state=state, object_store=objects, node_config={}, receive=receive, **nothing)


def ended():
    raise RunNotRunningException


@pytest.mark.parametrize("receive", [lambda: None, ended], ids=["no message", "its run ended"])
def test_an_answer_does_not_wait_for_the_next_message(take, receive):
    factory = ObjectStoreFactory()
    objects, state = factory.store(), NodeStateFactory(factory).state()
    assert taken(take["ours"], state, objects, receive) is None
    asked = named(Message(RecordDict(), 1, "query"), "asked")
    state.store_message(asked)
    assert taken(take["ours"], state, objects, receive) is None
    state.store_message(named(Message(RecordDict(), reply_to=asked), "answer"))
    assert taken(take["flower"], state, objects, receive) is None
    assert taken(take["ours"], state, objects, receive) == TaskIdentity.run_id
    (waiting,) = state.get_messages_legacy(is_reply=True)  # it was seen, not taken away
    assert waiting.metadata.message_id == "answer"
    assert taken(take["ours"], state, objects, receive) is None


@pytest.mark.parametrize("service", ["superlink", "supernode"])
def test_a_command_passes_its_options_on(run_main, monkeypatch, service):
    given = ["--node-config", '-x=1 y="a b"', "--max-retries", "-1", "-V", "--name", ""]
    passed = []
    monkeypatch.setattr(services, f"run_{service}", passed.extend)
    assert run_main("flower", service, *given).returncode == 0
    assert passed == given


def test_a_heartbeat_outlasts_an_error_of_the_superlink():
    def fails(_):
        raise httpx.HTTPStatusError("500", request=None, response=httpx.Response(500))

    with pytest.raises(HeartbeatFailure):
        services.retry_heartbeats(fails)(None)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_superlink_ends_with_its_superexec(monkeypatch, stopped):
    monkeypatch.setattr(services, "END_S", 0.1)
    ended = threading.Event()
    monkeypatch.setattr(services.os, "kill", lambda *_: ended.set())
    lifespan = SimpleNamespace(superexec_process=None)

    def start(lifespan):
        lifespan.superexec_process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    services.end_with_superexec(start)(lifespan)
    process = lifespan.superexec_process
    if stopped:
        lifespan.superexec_process = None  # as the SuperLink does when it ends itself
    process.communicate()
    assert ended.wait(5 if not stopped else 0.5) is not stopped


def test_a_node_that_cannot_start_ends(tmp_path):
    (tmp_path / "ca.crt").write_text("no certificate")
    port = str(bed._free_port())
    options = ["--superlink", "127.0.0.1:9", "--port", port, "--root-certificates", str(tmp_path / "ca.crt")]
    with open(tmp_path / "log", "w") as file:  # a pipe would wait for the node's SuperExec, and that for the node
        done = subprocess.run(
            [sys.executable, "-m", "fedadamw", "flower", "supernode", *options],
            env={"PATH": str(sys.prefix) + "/bin", "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"},
            stdout=file,
            stderr=file,
            timeout=60,
        )
    assert done.returncode == 1
    assert "The SuperNode cannot continue" in (tmp_path / "log").read_text()
