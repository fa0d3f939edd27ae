"""FedAdamW: federated learning of large models with adaptive optimizers.

For your own loop: `Blocks`, `Server`, `FedAdamW`, `save`, `load`. For simulations: the command `fedadamw`.
"""

from importlib.metadata import version

from fedadamw.blocks import Blocks
from fedadamw.messages import Broadcast, Upload, load, save
from fedadamw.optim import FedAdamW, Server

__version__ = version("fedadamw")
__all__ = ["Blocks", "Broadcast", "FedAdamW", "Server", "Upload", "load", "save"]
