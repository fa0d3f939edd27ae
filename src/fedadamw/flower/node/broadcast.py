"""Reads the server's broadcast on a node: the whole state, or the change since the round before."""

from collections.abc import Mapping
from typing import Any

from flwr.app import Array
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Broadcast
from fedadamw.engine.workspace import Workspace
from fedadamw.flower.protocol import Request, StaleError
from fedadamw.flower.wire import ArraySpec, digest, name_fields, read_arrays
from fedadamw.vector import Vector


class BroadcastReader:
    """Reads broadcasts and keeps the last one, which the next change applies to.

    down, up: an example of each, for shapes and types. base: the frozen weights, if they travel.
    """

    def __init__(
        self, algorithm: AnyAlgorithm, workspace: Workspace, down: Any, up: Any, base: Vector | None = None
    ) -> None:
        self.algorithm, self._y, self._down, self._up = algorithm, workspace.y, type(down), type(up)
        statistics = {"statistics": workspace.shared_statistics}
        whole = {**name_fields("down", down), **statistics, **({} if base is None else {"base": base})}
        self._whole_specs = {name: ArraySpec.of(t) for name, t in whole.items()}
        self._change_specs = {name: ArraySpec.of(t) for name, t in {**name_fields("up", up), **statistics}.items()}
        self._last: tuple[int, Any] | None = None  # the last round read here, and its Down

    def read(self, arrays: Mapping[str, Array], request: Request) -> Broadcast:
        """Return the broadcast of a train request.

        Raises StaleError if it is a change and this node lacks the state before; RefusedError if the arrays are not
        those of this algorithm.
        """
        change = "digest" in request
        received = read_arrays(arrays, self._change_specs if change else self._whole_specs)
        tensors = {name: t.to(self._y.device) for name, t in received.items()}
        if change:
            down = self._apply_change(tensors, request)
        else:
            down = self._down(*(tensors[f"down.{field}"] for field in self._down._fields))
        round_ = int(request["round"])
        self._last = round_, down
        return Broadcast(round_, down, tensors["statistics"], tensors.get("base", down.x[:0]))

    def _apply_change(self, tensors: Mapping[str, Tensor], request: Request) -> Any:
        """Repeat the server's update of the last round, from the clients' mean upload."""
        if self._last is None or self._last[0] != request["round"] - 1:
            raise StaleError(f"the state of round {int(request['round'])} is not here")
        up = self._up(*(tensors[f"up.{field}"] for field in self._up._fields))
        lr, participation = (self._y.new_tensor(request[name]) for name in ("lr", "participation"))
        down = self.algorithm.server_update(self._last[1], up, lr, participation)
        if digest(down) != request["digest"]:
            raise StaleError("the change leads to another state here than on the server")
        return down
