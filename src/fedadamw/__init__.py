"""FedAdamW: federated learning of large models with adaptive optimizers.

`simulate` trains any model over simulated clients, `run` and `compare` run recipes, as the command `fedadamw` does.
For your own loop: `Blocks`, `Server`, `FedAdamW`, `save`, `load`.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedadamw.api import partition
    from fedadamw.api.callbacks import Callback, ClientUpdate, EarlyStopping
    from fedadamw.api.recipes import compare, run
    from fedadamw.api.result import Comparison, Result
    from fedadamw.api.simulate import simulate
    from fedadamw.blocks.blocks import Blocks
    from fedadamw.optim.messages import Broadcast, Upload, load, save
    from fedadamw.optim.optimizer import FedAdamW
    from fedadamw.optim.server import Server

__version__ = version("fedadamw")

_HOMES = {
    "Blocks": "blocks.blocks",
    "Broadcast": "optim.messages",
    "Callback": "api.callbacks",
    "ClientUpdate": "api.callbacks",
    "Comparison": "api.result",
    "EarlyStopping": "api.callbacks",
    "FedAdamW": "optim.optimizer",
    "Result": "api.result",
    "Server": "optim.server",
    "Upload": "optim.messages",
    "compare": "api.recipes",
    "load": "optim.messages",
    "partition": "api",
    "run": "api.recipes",
    "save": "optim.messages",
    "simulate": "api.simulate",
}
__all__ = [
    "Blocks",
    "Broadcast",
    "Callback",
    "ClientUpdate",
    "Comparison",
    "EarlyStopping",
    "FedAdamW",
    "Result",
    "Server",
    "Upload",
    "compare",
    "load",
    "partition",
    "run",
    "save",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import fedadamw` alone does not import torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"fedadamw.{_HOMES[name]}")
    return import_module("fedadamw.api.partition") if name == "partition" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
