"""FedAdamW: federated learning of large models with adaptive optimizers.

For your own loop: `Blocks`, `Server`, `FedAdamW`, `save`, `load`. For simulations: the command `fedadamw`.
For an algorithm of your own: `Algorithm`, `Layout`, `Vector`, `check_algorithm`, `register`.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedadamw.algorithm import Algorithm
    from fedadamw.algorithms.registry import register
    from fedadamw.api.check_algorithm import check_algorithm
    from fedadamw.blocks.blocks import Blocks
    from fedadamw.optim.messages import Broadcast, Upload, load, save
    from fedadamw.optim.optimizer import FedAdamW
    from fedadamw.optim.server import Server
    from fedadamw.vector import Layout, Vector

__version__ = version("fedadamw")
__all__ = [
    "Algorithm",
    "Blocks",
    "Broadcast",
    "FedAdamW",
    "Layout",
    "Server",
    "Upload",
    "Vector",
    "check_algorithm",
    "load",
    "register",
    "save",
]

_HOMES = {
    "Algorithm": "algorithm",
    "Blocks": "blocks.blocks",
    "FedAdamW": "optim.optimizer",
    "Server": "optim.server",
    "register": "algorithms.registry",
    "check_algorithm": "api.check_algorithm",
    "Layout": "vector",
    "Vector": "vector",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import fedadamw` alone does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fedadamw.{_HOMES.get(name, 'optim.messages')}"), name)
