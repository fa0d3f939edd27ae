"""FedAdamW: federated learning of large models with adaptive optimizers.

`simulate` trains any model over simulated clients; `run` and `compare` run recipes, as the command `fedadamw` does.
For your own loop: `Blocks`, `Server`, `OuterStep`, `FedAdamW`, `save`, `load`.
For an algorithm of your own: `Algorithm`, `Layout`, `Vector`, `check_algorithm`, `register`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedadamw.algorithm import Algorithm
    from fedadamw.algorithms.outer import OuterStep
    from fedadamw.algorithms.registry import register
    from fedadamw.api import partition
    from fedadamw.api.callbacks import Callback, ClientUpdate, EarlyStopping
    from fedadamw.api.check_algorithm import check_algorithm
    from fedadamw.api.recipes import compare, run
    from fedadamw.api.result import Comparison, Result
    from fedadamw.api.simulate import simulate
    from fedadamw.blocks.blocks import Blocks
    from fedadamw.optim.messages import Broadcast, Upload, load, save
    from fedadamw.optim.optimizer import FedAdamW
    from fedadamw.optim.server import Server
    from fedadamw.vector import Layout, Vector

_HOMES = {
    "Algorithm": "algorithm",
    "Blocks": "blocks.blocks",
    "Broadcast": "optim.messages",
    "Callback": "api.callbacks",
    "ClientUpdate": "api.callbacks",
    "Comparison": "api.result",
    "EarlyStopping": "api.callbacks",
    "FedAdamW": "optim.optimizer",
    "Layout": "vector",
    "OuterStep": "algorithms.outer",
    "Result": "api.result",
    "Server": "optim.server",
    "Upload": "optim.messages",
    "Vector": "vector",
    "check_algorithm": "api.check_algorithm",
    "compare": "api.recipes",
    "load": "optim.messages",
    "partition": "api.partition",
    "register": "algorithms.registry",
    "run": "api.recipes",
    "save": "optim.messages",
    "simulate": "api.simulate",
}
__all__ = [
    "Algorithm",
    "Blocks",
    "Broadcast",
    "Callback",
    "ClientUpdate",
    "Comparison",
    "EarlyStopping",
    "FedAdamW",
    "Layout",
    "OuterStep",
    "Result",
    "Server",
    "Upload",
    "Vector",
    "check_algorithm",
    "compare",
    "load",
    "partition",
    "register",
    "run",
    "save",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import fedadamw` alone imports no torch and looks up no version."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fedadamw")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "partition":
        return import_module("fedadamw.api.partition")
    return getattr(import_module(f"fedadamw.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
