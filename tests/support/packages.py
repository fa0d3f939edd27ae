"""Packages with algorithms, as pip leaves them in site-packages: modules, METADATA, entry_points.txt."""

import shutil
from pathlib import Path

FEDAVGX = '''
from dataclasses import dataclass
from typing import ClassVar

from fedadamw.algorithms.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedAvgX(FedAvg):
    """FedAvg with one more setting."""

    speed: float = 1.0
    tuning: ClassVar = {"lr": (0.01, 0.03, 0.1), "speed": (0.5, 1.0)}

    def __post_init__(self) -> None:
        if self.speed < 0:
            raise ValueError(f"speed={self.speed} must not be negative")
'''


def install(site: Path, package: str, entries: dict[str, str], source: str = FEDAVGX, version: str = "0.1") -> None:
    """Put into the folder `site` a package with a module `source` of its name and entry points, name -> value."""
    (site / f"{package.replace('-', '_')}.py").write_text(source)
    for old in site.glob(f"{package.replace('-', '_')}-*.dist-info"):
        shutil.rmtree(old)  # an upgrade
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[fedadamw.algorithms]", *lines, ""]))
