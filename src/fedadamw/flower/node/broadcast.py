"""Reads what the server sends of its state: the whole, the change since the last round, nothing, or the model alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr.app import Array
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Broadcast
from fedadamw.engine.workspace import Workspace
from fedadamw.flower.protocol import Request, StaleError
from fedadamw.flower.wire import ArraySpec, RefusedError, digest, name_fields, read_arrays
from fedadamw.vector import Vector


class KnownState(NamedTuple):
    """The last state that this node received, under the server's name for it."""

    round: int  # from 0
    name: str
    down: Any
    statistics: Vector


class BroadcastReader:
    """Reads broadcasts and keeps the last one, which the next change applies to.

    down, up: an example of each, for shapes and types. base: the frozen weights, if they travel. model: the tensors
    of the model alone, as it is sent to be evaluated.
    """

    def __init__(
        self,
        algorithm: AnyAlgorithm,
        workspace: Workspace,
        down: Any,
        up: Any,
        base: Vector | None,
        model: Mapping[str, Tensor],
    ) -> None:
        self.algorithm, self._y, self._down, self._up = algorithm, workspace.y, type(down), type(up)
        statistics = {"statistics": workspace.shared_statistics}
        travels = {**statistics, **({} if base is None else {"base": base})}
        received = {
            "state": {**name_fields("down", down), **travels},
            "change": {**name_fields("up", up), **statistics},
            "known": {},
            "model": model,
        }
        self._specs = {
            form: {name: ArraySpec.of(t) for name, t in tensors.items()} for form, tensors in received.items()
        }
        self._last: KnownState | None = None

    def read(self, arrays: Mapping[str, Array], request: Request) -> Broadcast:
        """Return the broadcast of a request that brings the state.

        Raises StaleError if this node lacks the state that it names or changes; RefusedError if the arrays are not
        those of this algorithm.
        """
        form, round_ = request["form"], int(request["round"])
        tensors = self._read_arrays(arrays, form)
        if form == "known":
            last = self._find_known(request)
            return Broadcast(round_, last.down, last.statistics, last.down.x[:0])
        if form == "change":
            down = self._apply_change(tensors, request)
        else:
            down = self._down(*(tensors[f"down.{field}"] for field in self._down._fields))
        self._last = KnownState(round_, request["state"], down, tensors["statistics"])
        return Broadcast(round_, down, tensors["statistics"], tensors.get("base", down.x[:0]))

    def read_model(self, arrays: Mapping[str, Array], request: Request) -> tuple[Vector, Vector, Vector]:
        """Return the model (d,), its statistics (s,) and frozen weights of a request to evaluate; errors as of `read`.

        The model alone does not replace the state that this node has.
        """
        if request["form"] != "model":
            broadcast = self.read(arrays, request)
            return broadcast.down.x, broadcast.statistics, broadcast.base
        tensors = self._read_arrays(arrays, "model")
        return tensors["x"], tensors["statistics"], tensors.get("base", tensors["x"][:0])

    def _read_arrays(self, arrays: Mapping[str, Array], form: str) -> dict[str, Tensor]:
        """Return the arrays of this form on the device."""
        if form not in self._specs:
            raise RefusedError("records", f"the form {form!r} is unknown")
        return {name: t.to(self._y.device) for name, t in read_arrays(arrays, self._specs[form]).items()}

    def _find_known(self, request: Request) -> KnownState:
        """Return the state that the request names."""
        if self._last is None or self._last.name != request["state"]:
            raise StaleError(f"the state after round {int(request['round'])} is not here")
        return self._last

    def _apply_change(self, tensors: Mapping[str, Tensor], request: Request) -> Any:
        """Repeat the server's update of the last round, from the clients' mean upload."""
        if self._last is None or self._last.round != request["round"] - 1:
            raise StaleError(f"the state of round {int(request['round'])} is not here")
        up = self._up(*(tensors[f"up.{field}"] for field in self._up._fields))
        lr, participation = (self._y.new_tensor(request[name]) for name in ("lr", "participation"))
        down = self.algorithm.server_update(self._last.down, up, lr, participation)
        if digest(down) != request["digest"]:
            raise StaleError("the change leads to another state here than on the server")
        return down
