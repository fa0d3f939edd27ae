"""Stores what a client keeps between its rounds: control variates, error feedback."""

from pathlib import Path
from typing import Any

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.engine.store import OnDisk
from fedadamw.flower.protocol import LateError


class ClientMemory:
    """One client's memory of a run, in `folder`; nothing is written if the template is ().

    fresh_if_lost: begin a new memory if it is lost (federation.lost_memory=fresh); otherwise raise CheckpointError.
    """

    def __init__(self, folder: Path, template: Any, *, fresh_if_lost: bool) -> None:
        self.folder, self.fresh_if_lost = folder, fresh_if_lost
        self._store = OnDisk(folder, 1, template) if template != () else None

    def check_order(self, sent: float) -> None:
        """Raise LateError if a request that was sent later was answered already, so that memories keep their order."""
        if self._store is None:
            return
        path = self.folder / "last"
        last = float(path.read_text()) if path.exists() else 0.0
        if sent < last:
            raise LateError("a newer request has been answered already (or the server's clock was set back)")
        write_atomically(path, repr(sent).encode())

    def load(self, counted: int) -> tuple[Any, bool]:
        """Return the memory after round `counted` (0: None), and whether it was lost and is begun anew."""
        if self._store is None:
            return None, False
        self._store.tensors(counted)  # the server will not ask for an earlier round
        self._store.forget_after(0, counted)
        if counted == 0:
            return None, False
        if self._store.has(0, counted):
            return self._store.get(0, counted), False
        self._check_may_be_lost(counted)
        self._store.forget_after(0, 0)
        return None, True

    def read(self, counted: int) -> Any:
        """Return the memory after round `counted`, None before the first or if it is lost; change nothing.

        The server may yet return to an earlier round: it saves only after an evaluation.
        """
        if self._store is None or counted == 0:
            return None
        if not self._store.has(0, counted):
            self._check_may_be_lost(counted)
            return None
        return self._store.get(0, counted)

    def save(self, round_: int, memory: Any) -> None:
        """Keep the memory after round `round_` (from 1)."""
        if self._store is not None:
            self._store.put(0, round_, memory)
            self._store.sync()

    def _check_may_be_lost(self, counted: int) -> None:
        """Raise CheckpointError unless a lost memory is begun anew."""
        if not self.fresh_if_lost:
            raise CheckpointError(f"{self.folder}: the memories of round {counted} are lost (federation.lost_memory)")
