"""A SuperNode that mends what flwr's own does: answers that wait for the message after theirs."""

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

import grids  # noqa: F401  (it tells Flower which process this is)
from flwr.app import Message, RecordDict
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from fedadamw.flower import services


@pytest.fixture
def take():
    """Flower's own function and ours around it."""
    flowers = vars(start_client_internal)[services.TAKE]
    return {"flower": flowers, "ours": services.sending(flowers)}


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
