"""A Grid whose nodes run in this process: Flower's messages and records, without its network."""

import threading
import time
from collections.abc import Callable, Iterable

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedadamw.flower.client_app import pack_reason, pack_reply
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.protocol import ARRAYS, DECLINED, OTHER_DATA, REQUEST

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as Flower's processes do at their start

Lie = Callable[[dict, dict], None]  # changes arrays and numbers of an answer


class LocalGrid:
    """The part of a Grid that the server uses.

    Nodes 100, 101, ... are clients 0, 1, ...; a lie changes every reply of its node to `train`. entropy: of the nodes'
    private noise and batches; None: the operating system's, as always outside tests.
    """

    def __init__(self, clients: int, home, lies: dict[int, Lie] | None = None, entropy=None) -> None:
        self.configs = {100 + i: {"partition-id": i, "state-dir": str(home)} for i in range(clients)}
        self.workers = {node: Worker(entropy) for node in self.configs}
        self.lies = {100 + i: lie for i, lie in (lies or {}).items()}
        self.score_lies: dict[int, Lie] = {}  # by node, of replies to `evaluate`
        self.silent: set[int] = set()  # online nodes that do not answer
        self.silent_to: set[str] = set()  # what the silent ones do not answer; all if empty
        self.waiting: dict[str, Message] = {}
        self.pulled: list[int] = []
        self._one = threading.Lock()  # nodes are processes, which share no settings of torch

    def get_node_ids(self) -> Iterable[int]:
        return list(self.configs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(f"message-{len(self.waiting)}")
            message.metadata.__dict__["_message_id"] = names[-1]  # as Flower's does
            self.waiting[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (name,) = message_ids
        message = self.waiting[name]
        node = message.metadata.dst_node_id
        if node not in self.configs:
            return [Message(Error(code=ErrorCode.NODE_UNAVAILABLE, reason="gone"), reply_to=message)]
        asked, records = dict(message.content.config_records[REQUEST]), message.content.array_records
        if node in self.silent and (not self.silent_to or asked["ask"] in self.silent_to):
            return []
        self.configs[node] = dict(reversed(self.configs[node].items()))  # over the network they arrive in any order
        with self._one:
            numbers, arrays = self.workers[node].answer(
                {**asked, "came": time.time(), "config": self.configs[node]},
                dict(records[ARRAYS]) if ARRAYS in records else {},
            )
        for kind in {OTHER_DATA, DECLINED} & numbers.keys():
            return [pack_reason(message, kind, self.configs[node]["partition-id"], numbers[kind])]
        if "error" in numbers:
            return [Message(Error(code=2, reason=numbers["error"]), reply_to=message)]
        if node in self.lies and asked["ask"] == "train":
            self.lies[node](arrays, numbers)
        if node in self.score_lies and asked["ask"] == "evaluate":
            self.score_lies[node](arrays, numbers)
        self.pulled.append(node)
        return [pack_reply(message, numbers, arrays)]
