"""What the records of a message are called; apart from wire.py, since who passes them on needs no torch.

A message has one ConfigRecord (what is asked, of which round) and at most one ArrayRecord; an answer one MetricRecord
and at most one ArrayRecord.
"""

PROTOCOL = 1  # of these records and what is in them
ASK, ARRAYS, NUMBERS = "fedadamw", "arrays", "numbers"
STALE = "stale"  # among the numbers: what has changed was sent, and the state before is not here


class StaleError(Exception):
    """Only what has changed was sent, and what it changes is not here; the server sends all of it then."""
