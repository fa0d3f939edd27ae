"""A node's sums over its held-out samples are refused unless some samples can have them."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from flwr.app import Array, ConfigRecord, Message, RecordDict
from support.false_sums import LIES

from fedadamw.data.sums import Classes, Hits, Numbers, Tokens
from fedadamw.flower.client_app import pack_reply
from fedadamw.flower.protocol import REQUEST
from fedadamw.flower.server.check_sums import SumsChecker
from fedadamw.flower.wire import RefusedError


def reply_to_evaluate(lie):
    """Return a node's reply of 40 samples of which 30 are right, changed by `lie`."""
    request = Message(RecordDict({REQUEST: ConfigRecord({})}), 102, "evaluate")
    request.metadata.__dict__["_message_id"] = "request"
    arrays, numbers = {"sums": Array(np.array([40.0, 21.5, 30.0]))}, {"client": 2}
    lie(arrays, numbers)
    return pack_reply(request, numbers, arrays)


@pytest.mark.parametrize("name", LIES)
def test_wrong_sums_are_refused_with_their_reason(name):
    lie, reason = LIES[name]
    checker = SumsChecker(OfKind(Hits()))
    assert checker.check(reply_to_evaluate(lambda *_: None), 2, 40).tolist() == [40.0, 21.5, 30.0]
    with pytest.raises(RefusedError) as refused:
        checker.check(reply_to_evaluate(lie), 2, 40)
    assert refused.value.reason == reason


class OfKind:
    """A task whose sums are of this kind."""

    def __init__(self, kind):
        self.check_sums, self.pool = kind.check, kind.pool


KINDS = [(Hits(), 3), (Classes(("f1", "matthews"), 2), 8), (Numbers(("pearson",)), 7), (Tokens(64), 4)]
EXTREMES = [0.0, 5e-324, 1e-9, 1e9, 1e15, -1e15, 1e150, -1e150, 1.7e308, -1.7e308, math.nan, math.inf]


@pytest.mark.parametrize(("kind", "width"), KINDS)
@given(st.data())
def test_any_numbers_are_refused_or_give_finite_scores(kind, width, data):
    number = st.floats(width=64) | st.integers(-2, 40).map(float) | st.sampled_from(EXTREMES)
    sums = [40.0, *data.draw(st.lists(number, min_size=width - 1, max_size=width - 1))]
    reply = reply_to_evaluate(lambda arrays, _: arrays.update(sums=Array(np.array(sums))))
    with contextlib.suppress(RefusedError):
        score = kind.pool(SumsChecker(OfKind(kind)).check(reply, 2, 40))
        assert all(math.isfinite(value) for value in (score.loss, *score.metrics.values()))
        assert all(-1 <= value <= 1 for name, value in score.metrics.items() if name != "perplexity")
