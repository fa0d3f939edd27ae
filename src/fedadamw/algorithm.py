"""The contract: a federated algorithm is a few pure functions on flat vectors. It knows no module, batch or network.

One round, as every engine runs it (loop, stacked, ranks, Flower):

    down = broadcast(server)
    for each sampled client i:
        memory_i = what client_finish last returned, else client_init(down)
        local = client_start(down, memory_i)
        for k = 1..K:
            local = client_step(local, down, gradient(local.y), lr)
        up_i, memory_i = client_finish(local, down, lr)
    server = server_update(server, weighted mean of the up_i, field by field, lr, answers / N)

So what a client sends up must be something that can be averaged; the engine averages it, in whatever way is
cheapest there. Counters are tensors (..., 1), so that they broadcast against vectors with a leading client axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from fedadamw.vector import Vector


class ServerState(Protocol):
    """What every server remembers; a NamedTuple of tensors with at least the global model."""

    @property
    def x(self) -> Vector:
        """The global model, (d,)."""


class LocalState(Protocol):
    """What lives on a client for one round; a NamedTuple of tensors with at least the local model.

    Where it has a field `moments` with a `v` (..., d), the engine's diagnostics can look at it.
    """

    @property
    def y(self) -> Vector:
        """The local model, (..., d)."""


Server = TypeVar("Server", bound=ServerState)
Down = TypeVar("Down")
Memory = TypeVar("Memory")
Local = TypeVar("Local", bound=LocalState)
Up = TypeVar("Up")


class Algorithm(ABC, Generic[Server, Down, Memory, Local, Up]):
    """A federated algorithm; a frozen dataclass whose fields are its settings, and pure in every method."""

    elementwise: ClassVar[bool] = False
    """Whether `client_step` treats every coordinate alone, so that an engine may take a vector in pieces."""

    changes: ClassVar[tuple[str, ...]] = ("delta",)
    """The fields of Up, (..., d), that add to what the server has: a codec may send a part of them a round later."""

    adds_mean: ClassVar[bool] = True
    """Whether `server_update` moves x by exactly the clients' mean delta."""

    tuning: ClassVar[Mapping[str, Sequence[float]]]
    """The grids to start from when it is tuned, in the order of the search; `lr` is training.lr."""

    nonnegative: ClassVar[Sequence[str]] = ("v", "k")
    """Fields of what goes up that are never below 0, of those it has: second moments and counters."""

    @abstractmethod
    def server_init(self, x: Vector) -> Server:
        """What the server remembers before the first round, for the initial model `x` (d,)."""

    @abstractmethod
    def broadcast(self, server: Server) -> Down:
        """What travels down to each client."""

    def client_init(self, down: Down) -> Memory:
        """What a client keeps between its rounds, before its first: nothing by default."""
        return ()  # type: ignore[return-value]  # an algorithm without memory declares tuple[()]

    @abstractmethod
    def client_start(self, down: Down, memory: Memory) -> Local:
        """What lives on a client for one round; its field `y` is the model that the client begins with."""

    @abstractmethod
    def client_step(self, local: Local, down: Down, g: Vector, lr: Tensor) -> Local:
        """One local step with the gradient `g` (..., d) at `local.y`."""

    @abstractmethod
    def client_finish(self, local: Local, down: Down, lr: Tensor) -> tuple[Up, Memory]:
        """What travels up, and what the client keeps."""

    @abstractmethod
    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:
        """The server after a round; `up` is the weighted mean of what the clients sent.

        participation: the part () of all clients that answered, S/N.
        """


AnyAlgorithm = Algorithm[Any, Any, Any, Any, Any]  # for engines, which never look inside a state
