"""What the records of a message are called; apart from wire.py, since who passes them on needs no torch.

A message has one ConfigRecord (what is asked, of which round) and at most one ArrayRecord; an answer one MetricRecord
and at most one ArrayRecord.
"""

PROTOCOL = 2  # of these records and what is in them
REQUEST, ARRAYS, NUMBERS = "fedadamw", "arrays", "numbers"
REPLY_NUMBERS = frozenset({"client", "layout", "num-examples", "loss", "fresh", "stale"})  # the numbers there are
STALE = "stale"  # among the numbers: what has changed was sent, and the state before is not here


class LateError(Exception):
    """A message is of a round that is over, or older than one that was answered."""


class StaleError(Exception):
    """Only what has changed was sent, and what it changes is not here; the server sends all of it then."""
