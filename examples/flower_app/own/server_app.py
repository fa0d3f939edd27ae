"""The server: Flower's Grid carries, fedadamw.Server averages; invalid uploads are left out."""

import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

import fedadamw
from fedadamw.flower.records import pack, unpack_upload
from fedadamw.validation import InputError
from own.task import NODES, data, network

app = ServerApp()
MOST = 10_000  # examples, or local steps, that a node may say it has


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds of all nodes that are online; the first waits for them."""
    model, held_out = network(), data(NODES)
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks)  # holds x, Delta_G, v_bar, t
    while len(list(grid.get_node_ids())) < NODES:
        time.sleep(1)
    for round_ in range(1, int(context.run_config["rounds"]) + 1):
        down = RecordDict({"down": pack(server.broadcast()), "about": ConfigRecord({"round": round_})})
        asked = [Message(down, node, "train") for node in grid.get_node_ids()]
        uploads, weights = [], []
        for reply in grid.send_and_receive(asked, timeout=120):
            try:
                upload = unpack_upload(reply.content["up"], blocks, steps=MOST)
                count = int(reply.content["numbers"]["num-examples"])
                if not 0 < count <= MOST:
                    raise InputError(f"{count} examples")
                uploads.append(upload)
                weights.append(float(count))
            except Exception as error:  # whatever a node sends: its errors, other records, other numbers
                print(f"round {round_}: left out: {error}", flush=True)
        if uploads:
            server.update(uploads, weights=weights)
        server.load_into(model)
        pixels, labels = held_out.tensors
        right = float((model(pixels).argmax(1) == labels).float().mean())
        print(f"round {round_}: {len(uploads)} nodes, accuracy {right:.3f}", flush=True)
