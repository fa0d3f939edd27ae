"""The services pass their options on to Flower, and patch its faults."""

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
from support import grids  # noqa: F401  (it sets Flower's ids of this process)

from fedadamw.flower.local import services
from fedadamw.flower.local import testbed as bed


@pytest.fixture
def pull():
    """Flower's own function, and ours that wraps it."""
    flowers = start_client_internal._pull_and_store_message
    return {"flower": flowers, "ours": services.send_pending_replies(flowers)}


def with_id(message, name):
    message.metadata.__dict__["_message_id"] = name  # as Flower's does
    return message


def call_pull(pull, state, objects, receive):
    """Return the result of the pull function for one attempt to receive a message."""
    nothing = dict.fromkeys(["get_run", "get_fab", "pull_object", "confirm_message_received", "trusted_entities"])
    return pull(state=state, object_store=objects, node_config={}, receive=receive, **nothing)


def raise_ended():
    raise RunNotRunningException


@pytest.mark.parametrize("receive", [lambda: None, raise_ended], ids=["no message", "its run ended"])
def test_a_reply_is_sent_without_waiting_for_the_next_message(pull, receive):
    factory = ObjectStoreFactory()
    objects, state = factory.store(), NodeStateFactory(factory).state()
    assert call_pull(pull["ours"], state, objects, receive) is None
    asked = with_id(Message(RecordDict(), 1, "query"), "asked")
    state.store_message(asked)
    assert call_pull(pull["ours"], state, objects, receive) is None
    state.store_message(with_id(Message(RecordDict(), reply_to=asked), "answer"))
    assert call_pull(pull["flower"], state, objects, receive) is None
    assert call_pull(pull["ours"], state, objects, receive) == TaskIdentity.run_id
    (waiting,) = state.get_messages_legacy(is_reply=True)  # it was looked at, not removed
    assert waiting.metadata.message_id == "answer"
    assert call_pull(pull["ours"], state, objects, receive) is None


@pytest.mark.parametrize("service", ["superlink", "supernode"])
def test_a_service_command_passes_its_options_on_to_flower(run_main, monkeypatch, service):
    given = ["--node-config", '-x=1 y="a b"', "--max-retries", "-1", "-V", "--name", ""]
    passed = []
    monkeypatch.setattr(services, f"run_{service}", passed.extend)
    assert run_main("flower", service, *given).returncode == 0
    assert passed == given


def test_heartbeats_are_retried_after_an_error_of_the_superlink():
    def fails(_):
        raise httpx.HTTPStatusError("500", request=None, response=httpx.Response(500))

    with pytest.raises(HeartbeatFailure):
        services.retry_heartbeats(fails)(None)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_superlink_ends_when_its_superexec_ends(monkeypatch, stopped):
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


def test_a_node_that_cannot_start_exits_with_an_error(tmp_path):
    (tmp_path / "ca.crt").write_text("no certificate")
    port = str(bed._free_port())
    options = ["--superlink", "127.0.0.1:9", "--port", port, "--root-certificates", str(tmp_path / "ca.crt")]
    with open(tmp_path / "log", "w") as file:  # a pipe would stay open until the node's SuperExec ends
        done = subprocess.run(
            [sys.executable, "-m", "fedadamw", "flower", "supernode", *options],
            env={"PATH": str(sys.prefix) + "/bin", "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"},
            stdout=file,
            stderr=file,
            timeout=60,
        )
    assert done.returncode == 1
    assert "The SuperNode cannot continue" in (tmp_path / "log").read_text()
