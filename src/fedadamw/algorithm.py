"""The contract: a federated algorithm is a few pure functions on flat vectors.

It does not depend on modules, batches or networks. One round, as every engine runs it (loop, stacked, ranks, Flower):

    down = broadcast(server)
    for each sampled client i:
        memory_i = that of its last client_finish, else client_init(down)
        local = client_start(down, memory_i)
        for k = 1..K:
            local = client_step(local, down, gradient(local.y), lr)
        up_i, memory_i = client_finish(local, down, lr)
    server = server_update(server, weighted mean of the up_i, field by field, lr, answers / N)

So it must make sense to average uploads, field by field. Counters are
tensors (..., 1), so that they broadcast against vectors with a leading client axis.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from fedadamw.vector import Vector


class ServerState(Protocol):
    """State of the server; a NamedTuple of tensors with at least the global model."""

    @property
    def x(self) -> Vector:
        """The global model, (d,)."""


class LocalState(Protocol):
    """State of a client during one round; a NamedTuple of tensors with at least the local model.

    If it has a field `moments` with a `v` (..., d), the engine's diagnostics can report on it.
    """

    @property
    def y(self) -> Vector:
        """The local model, (..., d)."""


class UploadState(Protocol):
    """A client's upload: a NamedTuple of tensors whose first field is the update `delta`.

    A field named `k` (..., 1) must be the number of local steps: a federation's server checks it against the settings,
    and privacy of clients replaces it by them. One named `square` must be |delta|^2. If `carried` is not empty, there
    is a field `q` (..., c), see algorithms/counter.py.
    """

    @property
    def delta(self) -> Vector:
        """What the local steps changed: y - x, (..., d)."""


Server = TypeVar("Server", bound=ServerState)
Down = TypeVar("Down")
Memory = TypeVar("Memory")
Local = TypeVar("Local", bound=LocalState)
Up = TypeVar("Up", bound=UploadState)


class Algorithm(ABC, Generic[Server, Down, Memory, Local, Up]):
    """A federated algorithm: a frozen dataclass whose fields are its settings and whose methods are pure."""

    elementwise: ClassVar[bool] = False
    """Whether `client_step` treats each coordinate separately, so that an engine may step a vector in chunks."""

    changes: ClassVar[tuple[str, ...]] = ("delta",)
    """The fields of Up, (..., d), that the server adds to its state: a codec may send part of them a round later."""

    carried: ClassVar[tuple[float, ...]] = ()
    """Decay rates (c) of the moments that the server counts by the field `q` of Up; none with equal steps."""

    adds_mean: ClassVar[bool] = True
    """Whether `server_update` moves x by exactly the clients' mean delta."""

    tuning: ClassVar[Mapping[str, Sequence[float]]] = MappingProxyType({"lr": (1e-3, 1e-2, 1e-1)})
    """The grids from which tuning starts, in the order of the search; `lr` is training.lr."""

    own_model: ClassVar[str | None] = None
    """The field of Memory that is a client's own model (..., d), by which it is scored; None: the global one."""

    nonnegative: ClassVar[Sequence[str]] = ("v", "k", "square")
    """Names of fields that are never negative (second moments, counters, squared norms), for those that Up has."""

    @abstractmethod
    def server_init(self, x: Vector) -> Server:
        """Return the server's state before the first round, for the initial model `x` (d,)."""

    @abstractmethod
    def broadcast(self, server: Server) -> Down:
        """Return the message that each client receives."""

    def client_init(self, down: Down) -> Memory:
        """Return a client's memory before its first round; it has none by default."""
        return ()  # type: ignore[return-value]  # an algorithm without memory declares tuple[()]

    @abstractmethod
    def client_start(self, down: Down, memory: Memory) -> Local:
        """Return a client's state at the start of a round; its field `y` is the model that it starts from."""

    @abstractmethod
    def client_step(self, local: Local, down: Down, g: Vector, lr: Tensor) -> Local:
        """Take one local step with the gradient `g` (..., d) at `local.y`."""

    @abstractmethod
    def client_finish(self, local: Local, down: Down, lr: Tensor) -> tuple[Up, Memory]:
        """Return the upload, and the client's memory for its next round."""

    @abstractmethod
    def server_update(self, server: Server, up: Up, lr: Tensor, participation: Tensor) -> Server:
        """Return the server's state after a round; `up` is the weighted mean of the uploads.

        participation: the fraction () of all clients that answered, S/N.
        """


AnyState = Any  # a Server, Down, Memory, Local or Up of some algorithm; () for nothing
AnyAlgorithm = Algorithm[AnyState, AnyState, AnyState, AnyState, AnyState]  # for engines
