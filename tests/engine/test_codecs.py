"""Codecs: error bounds, unbiasedness, checks of what arrives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadamw.engine.codecs import CHUNK, CODECS, BFloat16, Int8, Plain, TopK, make_codec
from fedadamw.validation import InputError
from fedadamw.vector import nbytes

DTYPES = st.sampled_from([torch.float32, torch.float64])


@st.composite
def vectors(draw, min_size=1):
    """Vectors of any length around the chunks' ends, with scales that differ wildly, zeros and equals among them."""
    d = draw(st.integers(min_size, 3) | st.integers(CHUNK - 2, CHUNK + 2) | st.integers(1, 3 * CHUNK))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(d, generator=g, dtype=torch.float64)
    x = x * 10.0 ** torch.randint(-draw(st.integers(0, 12)), draw(st.integers(1, 12)), (d,), generator=g)
    kind = draw(st.sampled_from(["any", "zeros", "equals", "tiny"]))
    x = {"any": x, "zeros": x * (x > 0), "equals": x.sign(), "tiny": x * 1e-40}[kind]
    return x.to(draw(DTYPES))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def through(codec, x, seed=0):
    sent = codec.encode(x, seeded(seed))
    codec.check(sent, x)
    back = codec.decode(sent, x)
    assert (back.shape, back.dtype) == (x.shape, x.dtype)
    assert all(t.dtype not in (torch.bfloat16, torch.bool) for t in sent), "numpy has a name for it"
    return back


@given(vectors())
def test_plain_codec_is_the_identity(x):
    assert torch.equal(through(Plain(), x), x)


@given(vectors())
def test_bfloat16_error_is_at_most_a_256th_and_keeps_the_sign(x):
    back = through(BFloat16(), x)
    normal = torch.where(x.abs() < 1.2e-38, 1.2e-38, x.abs())
    assert bool(((back - x).abs() <= normal / 256).all())
    assert bool((back * x >= 0).all())


@given(vectors(), st.integers(0, 2**31))
def test_int8_error_is_less_than_one_step_of_its_chunk(x, seed):
    back = through(Int8(), x, seed)
    for start in range(0, len(x), CHUNK):
        here = slice(start, start + CHUNK)
        step = float(x[here].abs().max()) / 127
        assert float((back[here] - x[here]).abs().max()) <= step * (1 + 1e-5) + 1e-44
    assert bool((back[x == 0] == 0).all())
    assert bool((back * x.sign() >= 0).all())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), DTYPES)
def test_int8_is_unbiased(seed, dtype):
    x = torch.randn(50, generator=seeded(seed), dtype=dtype)
    times, g = 1000, seeded(seed + 1)
    codec = Int8()
    mean = sum(codec.decode(codec.encode(x, g), x).double() for _ in range(times)) / times
    step = float(x.abs().max()) / 127
    assert float((mean - x).abs().max()) < 5 * 0.5 * step / times**0.5, "five deviations of a mean of such draws"


def test_numbers_on_the_int8_grid_are_exact():
    x = torch.arange(-127.0, 128.0) / 64
    assert torch.equal(through(Int8(), x), x)


@given(vectors(), st.floats(0.001, 1.0))
def test_top_k_sends_the_largest_unchanged(x, keep):
    codec = TopK(keep)
    back = through(codec, x)
    count = codec.count(len(x))
    values, places = codec.encode(x, seeded())
    assert len(places) == count
    assert torch.equal(back[places.long()], x[places.long()])
    others = torch.ones(len(x), dtype=torch.bool)
    others[places.long()] = False
    assert not back[others].any()
    if others.any():
        assert float(x[others].abs().max()) <= float(values.abs().min())


def test_top_k_breaks_ties_by_index():
    values, places = TopK(0.5).encode(torch.tensor([1.0, -2.0, 1.0, -1.0, 1.0, 0.5]), seeded())
    assert places.tolist() == [0, 1, 2]
    assert values.tolist() == [1.0, -2.0, 1.0]


@given(st.integers(200, 20_000), st.floats(0.001, 1.0))
def test_encoded_bytes(d, keep):
    x = torch.randn(d, generator=seeded(d))
    sizes = {name: nbytes(make_codec(name, keep).encode(x, seeded())) for name in CODECS}
    assert sizes["float32"] == 4 * d
    assert sizes["bfloat16"] == 2 * d
    assert sizes["int8"] == d + 4 * -(-d // CHUNK) <= 0.27 * sizes["float32"]
    assert sizes["top-k"] == 8 * max(round(keep * d), 1)


def test_the_same_generator_gives_the_same_bytes():
    x = torch.randn(5000, generator=seeded())
    first, again, other = (Int8().encode(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_numbers_survive_numpy():
    x = torch.randn(3000, generator=seeded())
    for name in CODECS:
        codec = make_codec(name, 0.1)
        sent = codec.encode(x, seeded())
        arrays = [np.frombuffer(t.numpy().tobytes(), t.numpy().dtype) for t in sent]
        again = tuple(torch.from_numpy(a.copy()) for a in arrays)
        codec.check(again, x)
        assert torch.equal(codec.decode(again, x), codec.decode(sent, x))


X = torch.linspace(-1, 1, 3000)
LONG, SCALES = torch.zeros(3000, dtype=torch.int8), torch.ones(2)
VALUES, PLACES = torch.ones(3), torch.tensor([4, 5, 2999], dtype=torch.int32)


@pytest.mark.parametrize(
    ("codec", "sent", "complaint"),
    [
        (Plain(), (X[1:],), r"has shape \(2999,\) and type torch.float32, not \(3000,\) and torch.float32"),
        (Plain(), (X.double(),), "type torch.float64, not"),
        (BFloat16(), (X.bfloat16(),), "type torch.bfloat16, not .* torch.int16"),
        (Int8(), (LONG.view(1, -1), SCALES), r"has shape \(1, 3000\)"),
        (Int8(), (LONG, SCALES[:1]), r"has shape \(1,\) .* not \(2,\)"),
        (Int8(), (LONG, SCALES.double()), "torch.float64, not .* torch.float32"),
        (Int8(), (LONG - 128, SCALES), "has a code below -127"),
        (Int8(), (LONG, -SCALES), "has a scale that is negative or not a number"),
        (Int8(), (LONG, SCALES * torch.nan), "has a scale that is negative or not a number"),
        (TopK(0.001), (VALUES[:2], PLACES), r"has shape \(2,\)"),
        (TopK(0.001), (VALUES, PLACES.long()), "torch.int64, not .* torch.int32"),
        (TopK(0.001), (VALUES, PLACES + 1), r"has an index outside 0 \.\. 2999"),
        (TopK(0.001), (VALUES, PLACES - 5), r"has an index outside 0 \.\. 2999"),
        (TopK(0.001), (VALUES, PLACES[[0, 0, 2]]), "has indices that are not in rising order"),
        (TopK(0.001), (VALUES, PLACES[[1, 0, 2]]), "has indices that are not in rising order"),
    ],
)
def test_tensors_that_no_encoder_makes_are_refused_in_one_line(codec, sent, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        codec.check(sent, X)
    assert "\n" not in str(caught.value)


def test_an_unknown_codec_is_named():
    with pytest.raises(InputError, match=r"training.upload='int4' is unknown.*; use one of float32, bfloat16, int8"):
        make_codec("int4", 0.1)
