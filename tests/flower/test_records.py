"""FedAdamW's messages as records: they arrive unchanged, and anything else is refused."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from flwr.app import Array

import fedadamw
from fedadamw.flower.records import pack, unpack_broadcast, unpack_upload
from fedadamw.flower.wire import RefusedError
from fedadamw.validation import InputError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture(params=["mean-v", "none", "vm"])
def exchange(request):
    """The blocks, share, broadcast and upload of one round."""
    model, share = network(), request.param
    blocks = fedadamw.Blocks.of(model)
    down = fedadamw.Server(model, blocks=blocks, share=share).broadcast()
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=0.01, blocks=blocks)
    opt.start_round(down)
    for _ in range(3):
        nn.functional.cross_entropy(model(torch.randn(4, 6)), torch.randint(3, (4,))).backward()
        opt.step()
    return blocks, share, down, opt.finish_round()


def test_messages_arrive_unchanged(exchange):
    blocks, share, down, up = exchange
    for sent, found in (
        (down, unpack_broadcast(pack(down), blocks, share)),
        (up, unpack_upload(pack(up), blocks, share)),
    ):
        for field, t in sent.state._asdict().items():
            assert torch.equal(getattr(found.state, field), t)
    assert torch.equal(unpack_upload(pack(up), blocks, share).lr, up.lr)


def test_a_server_that_stepped_by_unpacked_uploads_is_saved(exchange, tmp_path):
    blocks, share, _, up = exchange
    server = fedadamw.Server(network(), blocks=blocks, share=share)
    server.update([unpack_upload(pack(up), blocks, share)])
    fedadamw.save(server.broadcast(), tmp_path / "state.safetensors")
    found = fedadamw.load(tmp_path / "state.safetensors")
    assert all(map(torch.equal, found.state, server.broadcast().state))


def test_a_message_for_another_model_cut_or_share_is_refused(exchange):
    blocks, share, down, up = exchange
    other = fedadamw.Blocks.of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)))
    with pytest.raises(RefusedError, match="wrong-shape"):
        unpack_upload(pack(up), other, share)
    coordinatewise = fedadamw.Blocks.of(network(), "coordinate")
    if share != "mean-v":
        with pytest.raises(InputError, match="another model, cut or share"):
            unpack_broadcast(pack(down), coordinatewise, share)
    with pytest.raises((RefusedError, InputError)):
        unpack_upload(pack(up), blocks, "m" if share != "m" else "v")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("delta", np.array([np.nan], np.float32), "wrong-shape"),
        ("delta", "nan", "delta is not finite"),
        ("k", np.zeros(1, np.float32), "0 steps; at least 1"),
        ("k", np.full(1, 3e38, np.float32), "3 were asked for"),
        ("delta", 1e300, "delta is not finite"),  # in float32
        ("about", np.zeros(5, np.uint8), "another model"),
        ("about", np.zeros(5, np.float32), "another model"),
        ("more", np.zeros(5, np.float32), "extra-array"),
        ("delta", np.array(["a"]), "wrong-dtype|wrong-shape"),
    ],
)
def test_an_invalid_upload_record_is_refused(exchange, field, value, complaint):
    blocks, share, _, up = exchange
    record = pack(up)
    if isinstance(value, str | float):
        numbers = record[field].numpy().astype(np.float64 if isinstance(value, float) else np.float32)
        numbers[0] = float(value)
        value = numbers
    record[field] = Array(value)
    with pytest.raises((RefusedError, InputError), match=complaint):
        unpack_upload(record, blocks, share, steps=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_messages_of_half_precision_models_arrive(dtype):
    model = network().to(dtype)
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks)
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=0.01, blocks=blocks)
    opt.start_round(unpack_broadcast(pack(server.broadcast()), blocks))
    nn.functional.cross_entropy(model(torch.randn(4, 6).to(dtype)), torch.randint(3, (4,))).backward()
    opt.step()
    server.update([unpack_upload(pack(opt.finish_round()), blocks)])
    assert bool(torch.isfinite(server.broadcast().state.x).all())
