"""The example of secure aggregation: what its server sees, what its rounds give, and what Flower's SecAgg+ lacks.

In this process, with Flower's own workflow and mod; at the end with real processes, one of which is killed.
"""

import importlib
import io
import shutil
import time

import numpy as np
import pytest
import torch
from support.checkout import ROOT

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from support.grids import LocalGrid  # noqa: F401  (gives this process the identity of Flower's)

import fedadamw
from fedadamw.flower.local.testbed import LocalFederation, kill
from fedadamw.flower.records import pack, unpack_upload

APP = ROOT / "examples" / "secure_sum"
RANGE = 2**32  # masked numbers are uniform below it
pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.fixture
def example(monkeypatch):
    """Import a module of the example."""
    monkeypatch.syspath_prepend(str(APP))
    yield lambda name: importlib.import_module(f"secure.{name}")
    for name in ("task", "fixed_point", "client_app", "server_app"):
        importlib.sys.modules.pop(f"secure.{name}", None)


class Nodes:
    """A Grid whose nodes are the example's ClientApp in this process; `change` may change a message or return None.

    A node without an answer fails, as one does whose SuperNode was killed. replies: stage -> node -> its answer.
    """

    def __init__(self, app, nodes, change=lambda stage, message: message):
        self.app, self.change, self.replies = app, change, {}
        self.contexts = {100 + i: new_context(100 + i, {"partition-id": i}) for i in range(nodes)}
        self.run = type("Run", (), {"run_id": 1})

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        return [self.answer(message) for message in messages]

    def answer(self, sent):
        message = Message(
            RecordDict({name: record.copy() for name, record in sent.content.items()}),
            dst_node_id=sent.metadata.dst_node_id,
            message_type=sent.metadata.message_type,
        )
        message.metadata.__dict__["_message_id"] = "asked"
        stage, node = message.content[RECORD_KEY_CONFIGS][Key.STAGE], message.metadata.dst_node_id
        changed = self.change(stage, message)
        if changed is None:
            return Message(Error(code=2, reason="gone"), reply_to=message)
        try:
            reply = self.app(changed, self.contexts[node])
        except Exception as error:  # as Flower's node does
            return Message(Error(code=2, reason=str(error)), reply_to=message)
        self.replies.setdefault(stage, {})[node] = reply
        return reply


def new_context(node, config, run_config=None):
    return Context(1, node, config, RecordDict(), run_config or {})


def run(example, grid, folder, rounds=2):
    """Run the example's ServerApp on a grid; return its last broadcast."""
    config = {"rounds": rounds, "seconds": 10, "out": str(folder / "state.safetensors")}
    example("server_app").app(grid, new_context(1, {}, config))
    return fedadamw.load(config["out"]).state


def plain_rounds(task, rounds):
    """The same rounds without secure aggregation, of these nodes in each."""
    server = fedadamw.Server(task.network())
    for number, nodes in enumerate(rounds, 1):
        down = pack(server.broadcast())
        server.update([unpack_upload(task.train(node, down, number), server.blocks) for node in nodes])
    return server.broadcast().state


def assert_equal_but_for_rounding(found, plain, task):
    """By less than a rounded number of each round can differ: 22 bits of a range of 1, and Adam's steps after it."""
    start = fedadamw.Server(task.network()).broadcast().state.x
    moved = float((plain.x - start).norm())
    assert moved > 0.5
    assert float((found.x - plain.x).norm()) < 1e-5 * moved
    assert torch.allclose(found.v, plain.v, rtol=1e-5, atol=0)
    assert torch.equal(found.t, plain.t)


def test_the_server_gets_the_sum_alone_and_the_rounds_are_the_plain_ones(example, tmp_path, capsys):
    task, nodes = example("task"), Nodes(example("client_app").app, 4)
    found = run(example, nodes, tmp_path)
    assert_equal_but_for_rounding(found, plain_rounds(task, [range(4)] * 2), task)
    assert capsys.readouterr().out.count(": sum of 4 nodes, accuracy 0.") == 2
    for node, reply in nodes.replies[Stage.COLLECT_MASKED_VECTORS].items():
        assert [len(record) for record in reply.content.array_records.values()] == [0]
        assert dict(reply.content["fitres.metrics"]) == {}
        assert reply.content["fitres.num_examples"]["num_examples"] == 1
        delta = masked_numbers(reply)[1]  # after the weight
        assert len(delta) == len(found.x)
        assert ((delta >= 0) & (delta < RANGE)).all()
        assert abs(delta.mean() / RANGE - 0.5) < 0.03, f"node {node}: a uniform mask; without one it were 2**-11"
        assert abs(delta.std() / RANGE - 12**-0.5) < 0.01


def masked_numbers(reply):
    return [np.load(io.BytesIO(b)) for b in reply.content[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]]


@pytest.mark.parametrize(
    ("stage", "in_sum"),
    [
        pytest.param(Stage.SETUP, None, marks=pytest.mark.slow),
        pytest.param(Stage.SHARE_KEYS, None, marks=pytest.mark.slow),
        (Stage.COLLECT_MASKED_VECTORS, range(3)),
        pytest.param(Stage.UNMASK, range(4), marks=pytest.mark.slow),
    ],
)
def test_a_node_that_is_lost_costs_its_upload_or_the_round(example, tmp_path, capsys, stage, in_sum):
    """Before keys are shared nobody can replace its masks, and Flower leaves out the whole round."""
    task = example("task")
    found = run(example, Nodes(example("client_app").app, 4, lose(stage, [103])), tmp_path, rounds=1)
    if in_sum is None:
        assert "round 1: NO SUM, the model stays" in capsys.readouterr().out
        assert torch.equal(found.x, fedadamw.Server(task.network()).broadcast().state.x)
    else:
        assert f"round 1: sum of {len(in_sum)} nodes" in capsys.readouterr().out
        assert_equal_but_for_rounding(found, plain_rounds(task, [in_sum]), task)


def lose(stage, lost):
    return lambda now, message: None if now == stage and message.metadata.dst_node_id in lost else message


@pytest.mark.slow
def test_two_nodes_cannot_unmask_and_are_not_asked(example, tmp_path, capsys):
    nodes = Nodes(example("client_app").app, 4, lose(Stage.UNMASK, [102, 103]))
    run(example, nodes, tmp_path, rounds=1)
    assert "round 1: NO SUM, the model stays" in capsys.readouterr().out

    def leave(stage, message):
        for node in (102, 103) if stage == Stage.UNMASK else ():
            nodes.contexts.pop(node, None)
        return message if message.metadata.dst_node_id in nodes.contexts else None

    nodes.change = leave
    nodes.replies.clear()
    run(example, nodes, tmp_path, rounds=2)
    assert capsys.readouterr().out.count("NO SUM, the model stays") == 2
    assert len(nodes.replies[Stage.SETUP]) == 4, "in the second round none was asked"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.6])
def test_a_number_that_would_be_clipped_is_not_sent(example, bad):
    upload = {"delta": np.array([0.1, bad]), "v": np.ones(3), "k": np.ones(1)}
    with pytest.raises(ValueError, match="delta has numbers that are not finite or above 0.5: nothing is sent"):
        example("fixed_point").encode(upload)


def test_digits_have_the_numbers_of_their_field(example):
    fixed_point = example("fixed_point")
    sent = {"delta": np.linspace(-0.5, 0.5, 7), "v": np.array([0, 1e-12, 3e-5, 900.0]), "k": np.array([22.0])}
    found = fixed_point.decode(fixed_point.encode(sent), 1)
    for name, error in {"delta": 0.5 * 2**-22, "v": 1e-13, "k": 0}.items():
        assert np.abs(found[name] - sent[name]).max() <= error, name


def test_a_mask_has_a_seed_of_32_bits():
    """Flower's generator takes the exclusive or of a key's words: keys that differ give the same mask."""
    key = bytes(range(32))
    other = key[4:8] + key[:4] + key[8:]  # the same words in another order
    (mask,), (same,) = (pseudo_rand_gen(k, RANGE, [(100,)]) for k in (key, other))
    assert np.array_equal(mask, same)


@pytest.mark.slow
def test_a_server_that_lies_gets_both_secrets_of_a_node(example, tmp_path):
    """It says that node 100 is alive and lost: its neighbours send shares of its own mask and of its key."""

    def lie(stage, message):
        if stage == Stage.UNMASK:
            message.content[RECORD_KEY_CONFIGS][Key.DEAD_NODE_ID_LIST] = [100]
        return message

    nodes = Nodes(example("client_app").app, 4)
    run(example, nodes, tmp_path, rounds=1)
    nodes.change = lie
    nodes.replies.clear()
    for node in (101, 102, 103):
        context = nodes.contexts[node]
        context.state.config_records["secaggplus_state"]["current_stage"] = Stage.COLLECT_MASKED_VECTORS
        record = ConfigRecord({Key.STAGE: Stage.UNMASK, Key.ACTIVE_NODE_ID_LIST: [100, 101, 102, 103]})
        record[Key.DEAD_NODE_ID_LIST] = []
        nodes.answer(Message(RecordDict({RECORD_KEY_CONFIGS: record}), dst_node_id=node, message_type="train"))
    for reply in nodes.replies[Stage.UNMASK].values():
        assert list(reply.content[RECORD_KEY_CONFIGS][Key.NODE_ID_LIST]).count(100) == 2


SLEEPS = """

import time
from pathlib import Path

fit = Node.fit


def sleep_in_round_2(self, parameters, config):
    if self.part == 3 and config["round"] == 2:
        Path("MARK").touch()
        time.sleep(600)
    return fit(self, parameters, config)


Node.fit = sleep_in_round_2
"""


@pytest.mark.slow
def test_real_processes_give_the_plain_rounds_also_when_a_node_is_killed(example, tmp_path):
    app, mark, out = shutil.copytree(APP, tmp_path / "app"), tmp_path / "mark", tmp_path / "state.safetensors"
    client = app / "secure" / "client_app.py"
    client.write_text(client.read_text() + SLEEPS.replace("MARK", str(mark)))
    with LocalFederation(tmp_path / "bed", 4) as bed:
        bed.start_superlink()
        for node in range(4):
            bed.register(node)
            bed.start_node(node)
        number = bed.submit(app, {"rounds": 2, "seconds": 300, "out": str(out)})
        until = time.monotonic() + 600
        while not mark.exists():
            assert time.monotonic() < until, bed.run_log(number)[-3000:]
            time.sleep(0.2)
        kill(bed.nodes[3])
        assert bed.wait_for_end(number, 600) == "finished:completed", bed.run_log(number)[-3000:]
        log = bed.run_log(number)
    assert [line.split(",")[0] for line in log.splitlines() if line.startswith("round ")] == [
        "round 1: sum of 4 nodes",
        "round 2: sum of 3 nodes",
    ]
    task = example("task")
    assert_equal_but_for_rounding(fedadamw.load(out).state, plain_rounds(task, [range(4), range(3)]), task)
