"""Record names and fields of a message. Separate from wire.py so the client app needs no torch.

A request has one ConfigRecord (a Request) and at most one ArrayRecord; a reply one MetricRecord (REPLY_NUMBERS) and at
most one ArrayRecord, or OTHER_DATA or DECLINED alone.
"""

from collections.abc import Mapping
from typing import Literal, TypedDict

PROTOCOL = 4  # version of these records and fields
REQUEST, ARRAYS, NUMBERS = "fedadamw", "arrays", "numbers"  # record names
STALE = "stale"
SUMS = "sums"  # the array of a reply to evaluate
PIXELS = "pixels"  # the array of a hello with the sums of a node's pixels, if the run has no mean and std of them yet
DECLINED = "declined"  # in reply: a ConfigRecord that says what the privacy that the node itself demands does not allow
OTHER_DATA = "other-data"  # in reply to hello: a ConfigRecord that says why the node's own data do not fit the run
REPLY_NUMBERS = frozenset(
    {
        "client",  # the node's partition-id
        "layout",  # in reply to hello: digest of the model's layout
        "num-examples",  # unless federation.sample_counts=false, as with privacy of samples
        "held-out",  # in reply to hello, if nodes evaluate: its number of held-out samples
        "loss",  # mean training loss; not with privacy of samples
        "fresh",  # 1: the client's memory was lost and it began a new one
        "version",  # in a buffered run: the version that it trained from, as it was asked
        "repeat",  # in a buffered run: which of its jobs on that version this was, as it was asked
        STALE,  # 1: only the change was sent, and this node lacks the state that it changes
    }
)

Ask = Literal["hello", "train", "evaluate"]
Form = Literal["state", "change", "known", "model"]
NodeConfig = Mapping[str, str | int | float | bool]  # --node-config
Numbers = dict[str, int | float]


class RunFacts(TypedDict):
    """A request's facts about its run."""

    settings: str  # YAML
    about: str  # JSON: the server's facts about the data, so that both sides build the same model
    federation: str  # the run's name, also after a resume
    unequal_steps: bool  # whether clients take unequal numbers of local steps, so that uploads have q


class RoundFacts(TypedDict, total=False):
    """A request's facts about its round, to train or evaluate.

    repeat only to train in a buffered run, whose rounds are versions; the last three only with the change of the state.

    form: what the arrays are. state: the whole state. change: what leads to it from the last round's. known: nothing,
    since the node has this state. model: the model alone, to evaluate.
    """

    round: int  # from 0; to evaluate: the number of rounds done
    form: Form
    state: str  # the state's name; no two states of a run have the same
    counted: int  # the last round (from 1) whose upload of this client counted; 0: none
    repeat: int  # which of the client's jobs on this version, from 0
    lr: float
    participation: float
    digest: str  # of the state that the change must lead to


class Request(RunFacts, RoundFacts):
    """The ConfigRecord of a request."""

    protocol: int
    ask: Ask
    sent: float  # the server's clock
    seconds: float  # after its arrival, within which the work must begin


class WorkerRequest(Request):
    """A request as the client app passes it to the node's worker."""

    came: float  # this machine's clock
    config: NodeConfig


class LateError(Exception):
    """A request's time is over, or a newer request was answered before it."""


class OtherDataError(Exception):
    """This node's own data are not what the run expects, or cannot be used; the message says in what."""


class DeclinedError(Exception):
    """The privacy that this node demands does not allow it. told: to the server; more: what only its own log says."""

    def __init__(self, told: str, more: str = "") -> None:
        self.told = told
        super().__init__(f"{told} ({more})" if more else told)


class StaleError(Exception):
    """Only the change was sent, and the state that it changes is not here; the server then sends the whole state."""
