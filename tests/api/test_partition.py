"""What cannot be divided is said in one line."""

from math import inf

import pytest

from fedadamw import partition
from fedadamw.validation import InputError

LABELS = [0, 1, 2] * 10
WRONG = {
    "part of a client": (lambda: partition.dirichlet(LABELS, 2.5), "clients=2.5: give a whole number"),
    "no client": (lambda: partition.iid(LABELS, 0), "clients=0: give a whole number"),
    "infinite": (lambda: partition.dirichlet(LABELS, 3, inf), "concentration=inf must be a number above 0"),
    "not a number": (lambda: partition.mix(LABELS, 3, float("nan")), "concentration=nan must be"),
    "samples": (lambda: partition.iid(-3, 2), "samples=-3: give at least 1"),
    "names of pairs": (lambda: partition.by_column([["a", "b"]]), "values: give the client of each sample"),
    "no minimum": (lambda: partition.by_column(["a"], minimum=0), "minimum=0: give a whole number from 1"),
    "seed": (lambda: partition.iid(10, 2, seed=-1), "seed=-1: give a whole number from 0"),
    "words": (lambda: partition.mix(["a", "b"], 2), "are not integers from 0"),
}


@pytest.mark.parametrize(("divide", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_divided_is_said_in_one_line(divide, message):
    with pytest.raises(InputError, match=message) as raised:
        divide()
    assert "\n" not in str(raised.value)
