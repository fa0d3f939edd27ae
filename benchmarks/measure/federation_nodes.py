"""Many nodes against one SuperLink: rounds, memory of the server's processes, bytes on the socket.

python -m benchmarks.measure.federation_nodes [--nodes 100] [--rounds 50]

A SuperLink with TLS and a ServerApp are real processes. The nodes are threads of this one that speak Flower's protocol
over real connections, as a SuperNode does, and answer with fedadamw's own half of a node; so that a hundred of them fit
on one machine. A proxy between them counts what goes over the socket.
"""

import argparse
import asyncio
import json
import os
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_object_contents_from_iterable,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from benchmarks.common import records
from fedadamw.flower import new_app
from fedadamw.flower.client_app import pack_reply
from fedadamw.flower.local.testbed import HOST, Testbed
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.protocol import ARRAYS, REQUEST
from fedadamw.settings.load import load

POLL_S = 3.0  # as a SuperNode
LARGE = ["model=vit-tiny", "model.depth=4"]


class Proxy:
    """Counts the bytes between nodes and SuperLink, TLS and headers with them."""

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

        async def connected(reader, writer):
            try:
                there, back = await asyncio.open_connection(HOST, target)
            except OSError:  # the SuperLink has ended
                writer.close()
                return
            await asyncio.gather(copy(reader, back, "up"), copy(there, writer, "down"))

        async def main():
            server = await asyncio.start_server(connected, HOST, 0)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await server.serve_forever()

        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
        ready.wait(10)


def node(number: int, port: int, certificate: bytes, home: str, stop: threading.Event) -> None:
    """One node, until `stop`; it comes back where this busy process made it miss its heartbeats."""
    while not stop.is_set():
        with suppress(Exception):
            connected(number, port, certificate, home, stop)


def connected(number: int, port: int, certificate: bytes, home: str, stop: threading.Event) -> None:
    """One node's connection."""
    worker, config = Worker(), {"partition-id": number, "state-dir": home, "threads": 1}
    with http_request_response(f"{HOST}:{port}", False, certificate) as connection:
        _, receive, send, _, _, pull, push, confirm = connection
        while not stop.wait(POLL_S):
            while (found := receive()) is not None:
                message, tree = found
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
    """MB in memory of each process whose command line has `command`; its most so far with VmHWM."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if command in path.read_text().replace("\0", " "):
                status = dict(line.split(":", 1) for line in (path.parent / "status").read_text().splitlines())
                found[int(path.parent.name)] = int(status[field].split()[0]) / 1024
    return found


def held(nodes: int, settings: list[str]) -> dict:
    """A run with so many nodes: per round seconds, MB of ServerApp and SuperLink; bytes on the socket."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        new_app.write_app(place / "app", load("digits", settings))
        with Testbed(place, 0, authenticated=False) as bed:
            bed.start_superlink()
            proxy, stop = Proxy(bed.port), threading.Event()
            certificate = (bed.certs / "ca.crt").read_bytes()
            threads = [
                threading.Thread(
                    target=node, args=(i, proxy.port, certificate, str(place / "state"), stop), daemon=True
                )
                for i in range(nodes)
            ]
            for thread in threads:
                thread.start()
            run = bed.submit(place / "app", {"out": str(place / "run")})
            link = bed.superlink.pid
            seen: list[dict] = []
            peak = {"server_app": 0.0, "superlink": 0.0}
            while not (status := bed_status(bed, run, place / "run", seen)).startswith("finished"):
                until = time.monotonic() + 5
                while time.monotonic() < until:
                    app_mb = max(resident_mb("flwr-serverapp").values(), default=0.0)
                    link_mb = resident_mb("flower superlink").get(link, 0.0)
                    peak["server_app"] = max([peak["server_app"], *resident_mb("flwr-serverapp", "VmHWM").values()])
                    peak["superlink"] = resident_mb("flower superlink", "VmHWM").get(link, peak["superlink"])
                    for record in seen:
                        record.setdefault("server_app_mb", round(app_mb, 1))
                        record.setdefault("superlink_mb", round(link_mb, 1))
                    time.sleep(0.5)
            stop.set()
            if status != "finished:completed":
                raise SystemExit(bed.run_log(run)[-3000:])
            computed = {way: sum(record[f"{way}_bytes"] for record in seen) for way in ("up", "down")}
            return {
                "nodes": nodes,
                "settings": settings,
                "peak_mb": {k: round(v, 1) for k, v in peak.items()},
                "bytes_on_the_socket": dict(proxy.counts),
                "bytes_computed": computed,
                "rounds": [
                    {
                        k: r[k]
                        for k in ("round", "wall_s", "clients", "up_bytes", "server_app_mb", "superlink_mb")
                        if k in r
                    }
                    for r in seen
                ],
            }


def bed_status(bed: Testbed, run: int, out: Path, seen: list[dict]) -> str:
    """The run's state; `seen` gets its new records."""
    status = bed.status(run)
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    seen += [json.loads(line) for line in lines[len(seen) :]]
    return status


def main() -> None:
    """Many rounds of many nodes; bytes on the socket; and a larger model: more nodes, then more clients a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    common = [f"partition.clients={options.nodes}", "training={steps: 1, batch_size: 5}", "threads=1", "device=cpu"]
    common.append("federation={wait_s: 120, deadline_s: 120}")
    many = [*common, f"training.rounds={options.rounds}", "training.clients_per_round=5"]
    record = {"long": held(options.nodes, many)}
    for upload in ("float32", "int8"):
        few = [*common, "training.rounds=3", "training.clients_per_round=10", f"training.upload={upload}"]
        record[f"bytes, {upload}"] = held(10, [*few, "partition.clients=10", "model=vit-nano"])
    for nodes, clients in ((10, 5), (40, 5), (40, 20)):
        large = [*common, f"partition.clients={nodes}", "training.rounds=2", f"training.clients_per_round={clients}"]
        record[f"large model, {nodes} nodes, {clients} a round"] = held(nodes, [*large, *LARGE])
    import platform

    import flwr
    import torch

    from fedadamw.runner.manifest import commit

    versions = {"python": platform.python_version(), "torch": torch.__version__, "flwr": flwr.__version__}
    about = {"device": f"cpu: {os.cpu_count()} cores", "versions": versions, "commit": commit()}
    records.write("federation-nodes", "cpu", {**about, **record})


if __name__ == "__main__":
    main()
