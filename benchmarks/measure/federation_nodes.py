"""Measure many nodes against one SuperLink: seconds per round, memory of the server's processes, bytes on the socket.

python -m benchmarks.measure.federation_nodes [--nodes 100] [--rounds 50] [--record]

A SuperLink with TLS and a ServerApp are real processes. The nodes are threads of this process that speak Flower's
protocol over real connections, as a SuperNode does, and answer with fedadamw's worker, so that a hundred of them fit on
one machine. A proxy between them counts the bytes.
"""

import asyncio
import json
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import flwr
import torch
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_object_contents_from_iterable,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.flower import new_app
from fedadamw.flower.client_app import pack_reply
from fedadamw.flower.local.testbed import HOST, LocalFederation
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.protocol import ARRAYS, REQUEST
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

POLL_S = 3.0  # as a SuperNode
LARGE = ["model=vit-tiny", "model.depth=4"]


class Proxy:
    """Counts the bytes between nodes and SuperLink, including TLS and headers."""

    def __init__(self, target: int) -> None:
        self.counts: Counter[str] = Counter()
        self.port, ready = 0, threading.Event()

        async def copy(reader, writer, direction):
            with suppress(OSError):
                while data := await reader.read(2**16):
                    self.counts[direction] += len(data)
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def connect(reader, writer):
            try:
                there, back = await asyncio.open_connection(HOST, target)
            except OSError:  # the SuperLink has ended
                writer.close()
                return
            await asyncio.gather(copy(reader, back, "up"), copy(there, writer, "down"))

        async def main():
            server = await asyncio.start_server(connect, HOST, 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await server.serve_forever()

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        ready.wait(10)


def run_node(number: int, port: int, certificate: bytes, home: str, stop: threading.Event) -> None:
    """Run one node until `stop`; reconnect if this busy process made it miss its heartbeats."""
    while not stop.is_set():
        with suppress(Exception):
            answer_messages(number, port, certificate, home, stop)


def answer_messages(number: int, port: int, certificate: bytes, home: str, stop: threading.Event) -> None:
    """Connect one node and answer its messages until `stop`."""
    worker, config = Worker(), {"partition-id": number, "state-dir": home, "threads": 1}
    with http_request_response(f"{HOST}:{port}", False, certificate) as connection:
        _, receive, send, _, _, pull, push, confirm = connection
        while not stop.wait(POLL_S):
            while (received := receive()) is not None:
                message, tree = received
                run = message.metadata.run_id
                message = pull_and_inflate_object_from_tree(
                    tree, partial(pull, run), partial(confirm, run), return_type=Message
                )
                message.metadata.__dict__["_message_id"] = tree.object_id
                asked, arrays = dict(message.content.config_records[REQUEST]), message.content.array_records
                reply = pack_reply(
                    message,
                    *worker.answer({**asked, "came": time.time(), "config": config}, dict(arrays.get(ARRAYS, {}))),
                )
                reply.metadata.__dict__["_message_id"] = reply.object_id
                with no_object_id_recompute():
                    tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
                    wanted, session = send(reply, tree, 0.0)
                    contents = [(name, objects[name].deflate()) for name in objects if name in wanted]
                    push_object_contents_from_iterable(contents, partial(push, run, session))


def resident_mb(command: str, field: str = "VmRSS") -> dict[int, float]:
    """The resident MB of each process whose command line contains `command`; with VmHWM its peak."""
    resident = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if command in path.read_text().replace("\0", " "):
                status = dict(line.split(":", 1) for line in (path.parent / "status").read_text().splitlines())
                resident[int(path.parent.name)] = int(status[field].split()[0]) / 1024
    return resident


def measure_run(nodes: int, settings: list[str]) -> dict:
    """Run a federation of `nodes`; return the records of its rounds, peak memory and bytes on the socket."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        new_app.write_app(place / "app", load("digits", settings))
        with LocalFederation(place, 0, authenticated=False) as bed:
            bed.start_superlink()
            proxy, stop = Proxy(bed.port), threading.Event()
            certificate, home = (bed.certs / "ca.crt").read_bytes(), str(place / "state")
            for number in range(nodes):
                arguments = (number, proxy.port, certificate, home, stop)
                threading.Thread(target=run_node, args=arguments, daemon=True).start()
            run = bed.submit(place / "app", {"out": str(place / "run")})
            rounds, peak = follow_run(bed, run, place / "run")
            stop.set()
    kept = ("round", "wall_s", "clients", "up_bytes", "server_app_mb", "superlink_mb")
    return {
        "nodes": nodes,
        "settings": settings,
        "peak_mb": {k: round(v, 1) for k, v in peak.items()},
        "bytes_on_the_socket": dict(proxy.counts),
        "bytes_computed": {way: sum(record[f"{way}_bytes"] for record in rounds) for way in ("up", "down")},
        "rounds": [{key: record[key] for key in kept if key in record} for record in rounds],
    }


def follow_run(bed: LocalFederation, run: int, out: Path) -> tuple[list[dict], dict[str, float]]:
    """Wait for the end of a run; return its rounds, each with the memory of the server's processes, and their peaks."""
    rounds: list[dict] = []
    peak = {"server_app": 0.0, "superlink": 0.0}
    while not (status := bed.status(run)).startswith("finished"):
        read_new_rounds(out / "metrics.jsonl", rounds)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            app_mb = max(resident_mb("flwr-serverapp").values(), default=0.0)
            link_mb = resident_mb("flower superlink").get(bed.superlink.pid, 0.0)
            peak["server_app"] = max([peak["server_app"], *resident_mb("flwr-serverapp", "VmHWM").values()])
            peak["superlink"] = resident_mb("flower superlink", "VmHWM").get(bed.superlink.pid, peak["superlink"])
            for record in rounds:
                record.setdefault("server_app_mb", round(app_mb, 1))
                record.setdefault("superlink_mb", round(link_mb, 1))
            time.sleep(0.5)
    read_new_rounds(out / "metrics.jsonl", rounds)
    if status != "finished:completed":
        raise SystemExit(bed.run_log(run)[-3000:])
    return rounds, peak


def read_new_rounds(path: Path, rounds: list[dict]) -> None:
    """Append the rounds of metrics.jsonl that `rounds` does not have yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    rounds += [json.loads(line) for line in lines[len(rounds) :]]


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    common = [f"partition.clients={args.nodes}", "training={steps: 1, batch_size: 5}", "threads=1", "device=cpu"]
    common.append("federation={wait_s: 120, deadline_s: 120}")
    many = [*common, f"training.rounds={args.rounds}", "training.clients_per_round=5"]
    runs = {"long": measure_run(args.nodes, many)}
    for upload in ("float32", "int8"):
        few = [*common, "training.rounds=3", "training.clients_per_round=10", f"training.upload={upload}"]
        runs[f"bytes, {upload}"] = measure_run(10, [*few, "partition.clients=10", "model=vit-nano"])
    for nodes, clients in ((10, 5), (40, 5), (40, 20)):
        large = [*common, f"partition.clients={nodes}", "training.rounds=2", f"training.clients_per_round={clients}"]
        runs[f"large model, {nodes} nodes, {clients} a round"] = measure_run(nodes, [*large, *LARGE])
    versions = {"python": platform.python_version(), "torch": torch.__version__, "flwr": flwr.__version__}
    about = {"device": f"cpu: {os.cpu_count()} cores", "versions": versions, "commit": commit()}
    records.write("federation-nodes", args.device, {**about, **runs}, record=args.record)


if __name__ == "__main__":
    main()
