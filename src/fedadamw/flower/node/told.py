"""What the server is told of an error on a node.

With privacy of samples (`privacy.unit: sample`, or a privacy key in --node-config) no text goes out that was written in
sight of the data: it is in the node's log. What leaves such a node, in all:

    hello   its number, a digest of the model's layout; or that it declines, or that its data do not fit or cannot be
            read
    train   the algorithm's upload, computed from noisy gradients and what the server sent; buffers as the server sent
            them; its number; whether its memory was begun anew; or one of the errors
    errors  a fixed line for each kind (LINES), or a text about the request alone (ABOUT_REQUEST)
    never   numbers of samples, losses, sums of pixels, scores, values, names of classes and columns, paths

That there is an answer, and when it comes, is seen too, and no noise is on that.
"""

import sys
import traceback
from collections.abc import Mapping
from typing import Any

from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.record import DivergedError
from fedadamw.flower.node.demands import is_about_privacy
from fedadamw.flower.protocol import (
    DECLINED,
    OTHER_DATA,
    STALE,
    DeclinedError,
    LateError,
    OtherDataError,
    StaleError,
)
from fedadamw.flower.wire import RefusedError
from fedadamw.io.yaml_text import read_yaml

MAX_ERROR_CHARACTERS = 300  # of an error's text that are sent to the server
ABOUT_REQUEST = (LateError, RefusedError, DivergedError)  # whose texts are about times, arrays and settings
LINES = {
    OtherDataError: "its data do not fit the run, or cannot be read",
    CheckpointError: "its memories of the run cannot be read (federation.lost_memory)",
    Exception: "an error on the node",
}
SEE_LOG = "; its log says more"


def is_private(request: Mapping[str, Any]) -> bool:
    """Return whether the server may be told only what is accounted for. request: may be invalid."""
    if any(is_about_privacy(key) for key in request.get("config", {})):
        return True
    try:
        privacy = read_yaml("settings", str(request.get("settings"))).get("privacy")
    except (ValueError, RecursionError, AttributeError):
        return False
    return isinstance(privacy, Mapping) and privacy.get("unit", "sample") == "sample"


def describe_error(error: Exception, *, private: bool) -> Mapping[str, int | str]:
    """Return what the server is told instead of numbers: {"error": text}, {kind of reason: text} or {"stale": 1}.

    private: see `is_private`; the whole error is then written to the node's log.
    """
    if isinstance(error, StaleError):
        return {STALE: 1}
    if isinstance(error, DeclinedError):
        print(f"this node declines: {error}", file=sys.stderr, flush=True)
        return {DECLINED: error.told}
    text = str(error) if isinstance(error, OtherDataError) else f"{type(error).__name__}: {error}"
    if private and not isinstance(error, ABOUT_REQUEST):
        traceback.print_exception(error, file=sys.stderr)
        sys.stderr.flush()
        text = next(line for kind, line in LINES.items() if isinstance(error, kind)) + SEE_LOG
    kind = OTHER_DATA if isinstance(error, OtherDataError) else "error"
    return {kind: text[:MAX_ERROR_CHARACTERS]}
