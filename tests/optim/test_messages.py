"""Uploads and broadcasts: checked, saved and loaded."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from support.rounds import flat, one_round, optimizer
from support.sequences import SmallTransformer, attention_model

import fedadamw
from fedadamw.checkpoint import CheckpointError, write


def replaced(up, **fields):
    return replace(up, state=up.state._replace(**fields))


def test_invalid_uploads_are_refused_by_name_and_change_nothing():
    server, up = one_round()
    before = server.broadcast().state
    layout = up.layout
    delta = up.state.delta.clone()
    delta[layout.offsets[layout.names.index("mlp.bias")]] = float("nan")
    v = up.state.v.clone()
    v[0] = -1.0
    wider = one_round(SmallTransformer(width=8).double())[1]
    bad = [
        (replaced(up, delta=delta), "upload 1: delta is not finite at 'mlp.bias'"),
        (replaced(up, v=v), "v is negative at 'embed.weight'"),
        (replaced(up, delta=up.state.delta[:-1]), "delta has 162 numbers instead of 163"),
        (replaced(up, k=torch.zeros(1)), "0 steps"),
        (wider, "another model: 'embed.weight' has shape"),
        ("up", "is a str"),
    ]
    for upload, message in bad:
        with pytest.raises(ValueError, match=message):
            server.update([up, upload])
    assert all(torch.equal(a, b) for a, b in zip(before, server.broadcast().state, strict=True))
    with pytest.raises(ValueError, match="no uploads"):
        server.update([])
    with pytest.raises(ValueError, match="1 weights for 2 uploads"):
        server.update([up, up], weights=[1.0])


def test_invalid_broadcast_is_refused_by_name():
    model = attention_model()
    server, _ = one_round()
    down = server.broadcast()
    x = down.state.x.clone()
    x[-1] = float("inf")
    opt = optimizer(model)
    before = flat(model)
    for bad, message in ((replaced(down, x=x), "'classifier.bias'"), (replaced(down, v=down.state.v[:-1]), "v has")):
        with pytest.raises(ValueError, match=message):
            opt.start_round(bad)
    assert torch.equal(flat(model), before)
    with pytest.raises(ValueError, match="the model is another one: 'embed.weight'"):
        server.load_into(SmallTransformer(width=8))


def test_message_with_another_granularity_or_share_is_refused():
    model = attention_model()
    server, _ = one_round()
    blocks = fedadamw.Blocks.of(model, granularity="tensor")
    opt = fedadamw.FedAdamW(model.named_parameters(), blocks=blocks)
    with pytest.raises(ValueError, match="other blocks"):
        opt.start_round(server.broadcast())
    other = fedadamw.Server(model, share="v")
    with pytest.raises(ValueError, match="shares 'mean-v' instead of 'v'"):
        other.restore(server.broadcast())


def test_messages_are_unchanged_by_save_and_load(tmp_path):
    server, up = one_round()
    fedadamw.save(up, tmp_path / "up.safetensors")
    fedadamw.save(server.broadcast(), tmp_path / "down.safetensors")
    again, down = fedadamw.load(tmp_path / "up.safetensors"), fedadamw.load(tmp_path / "down.safetensors")
    assert again.layout == up.layout
    other = fedadamw.Server(attention_model(seed=5))
    other.restore(down)
    server.update([up])
    other.update([again])
    for a, b in zip(server.broadcast().state, other.broadcast().state, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("facts", [{}, {"names": 3, "shapes": 4, "cut": 1, "share": 2}, {"names": []}])
def test_file_that_is_not_a_message_is_refused(tmp_path, facts):
    write(tmp_path / "up", "upload", {"lr": torch.ones(1), "strange": torch.ones(1)}, facts)
    with pytest.raises(CheckpointError, match="neither an upload nor a broadcast"):
        fedadamw.load(tmp_path / "up")
    save_file({"x": torch.ones(1)}, tmp_path / "other", metadata={"fedadamw": "[]"})
    with pytest.raises(CheckpointError):
        fedadamw.load(tmp_path / "other")


def test_a_server_with_an_outer_step_resumes_from_its_snapshot(tmp_path):
    _, up = one_round()
    whole = fedadamw.Server(attention_model(), outer=fedadamw.OuterStep())
    whole.update([up])
    fedadamw.save(whole.snapshot(), tmp_path / "server.safetensors")
    whole.update([up])
    resumed = fedadamw.Server(attention_model(), outer=fedadamw.OuterStep())
    snapshot = fedadamw.load(tmp_path / "server.safetensors")
    resumed.restore(snapshot)
    resumed.update([up])
    assert torch.equal(resumed.broadcast().state.x, whole.broadcast().state.x)
    assert resumed.broadcast().momentum is None, "it does not travel"
    assert torch.equal(resumed.snapshot().momentum, whole.snapshot().momentum)
    with pytest.raises(ValueError, match="has no momentum for the outer step: save server.snapshot"):
        resumed.restore(whole.broadcast())
    with pytest.raises(ValueError, match="of a server with an outer step"):
        fedadamw.Server(attention_model()).restore(snapshot)
    with pytest.raises(ValueError, match="momentum has 162 numbers instead of 163"):
        resumed.restore(replace(snapshot, momentum=snapshot.momentum[1:]))
    with pytest.raises(ValueError, match="lr=0 must be above 0"):
        fedadamw.OuterStep(lr=0)
