"""Reads a node's configuration (--node-config)."""

from pathlib import Path

from fedadamw.flower.protocol import NodeConfig
from fedadamw.prepare.device import check_device
from fedadamw.validation import check


def read_number(config: NodeConfig) -> int:
    """Return the node's `partition-id`: its number among the clients."""
    number = config.get("partition-id")
    valid = isinstance(number, int) and not isinstance(number, bool) and number >= 0
    check(
        valid,
        f"this node's partition-id is {number!r}: give --node-config 'partition-id=NUMBER', from 0, unique to it",
    )
    return int(number)  # type: ignore[arg-type]  # as just checked


def read_device(config: NodeConfig) -> str:
    """Return the node's `device`; `auto` if not set."""
    device = config.get("device", "auto")
    check_device("this node's device", device)
    return str(device)


def read_share(config: NodeConfig) -> float:
    """Return the share of its own data that the node holds out for evaluation, `held-out`; 0 if not set."""
    share = config.get("held-out", 0)
    valid = isinstance(share, int | float) and not isinstance(share, bool) and 0 <= share < 1
    check(valid, f"this node's held-out is {share!r}: give a share of its data, from 0 to below 1")
    check(not share or "test" not in config, "this node has both test and held-out: give one")
    return float(share)


def read_test(config: NodeConfig) -> str | None:
    """Return the file or folder of the node's own held-out data, `test`; None if not set."""
    test = config.get("test")
    check(test is None or (isinstance(test, str) and test != ""), f"this node's test is {test!r}: give a path")
    return None if test is None else str(test)


def memory_folder(config: NodeConfig, federation: str, number: int) -> Path:
    """Return the folder of a client's memory of a run: below `state-dir`, or below the user's state folder."""
    check(federation.isalnum(), f"{federation!r} is not a run's name, which has only letters and digits")
    return state_folder(config) / federation / f"client-{number}"


def state_folder(config: NodeConfig) -> Path:
    """Return the folder of all that a node keeps: `state-dir`, or the user's state folder."""
    return Path(str(config.get("state-dir") or Path.home() / ".local/state/fedadamw"))
