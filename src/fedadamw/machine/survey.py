"""All that `fedadamw doctor` finds, as one value that can be printed or written as JSON."""

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from fedadamw.algorithms.plugins import find_plugins
from fedadamw.machine.compiler import Compiler, try_compiler
from fedadamw.machine.devices import Cpu, Gpu, describe_cpu, list_gpus
from fedadamw.machine.packages import Extra, Package, check_extras, check_packages, find_version
from fedadamw.machine.places import Place, check_places, list_flags


@dataclass(frozen=True)
class Survey:
    """What this machine offers."""

    fedadamw: str | None
    python: str
    system: str
    problem: str | None  # why the core does not work; None if it does
    packages: list[Package]
    cpu: Cpu
    gpus: list[Gpu]
    no_gpu: str | None  # why there is none, or not another one
    compilers: list[Compiler]
    extras: list[Extra]
    plugins: dict[str, str]  # algorithms of other packages: name -> package
    places: list[Place]
    environment: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain values for JSON."""
        named = {key: value for key, value in asdict(self).items() if not isinstance(value, list | tuple)}
        lists = {key: [row._asdict() for row in value] for key, value in vars(self).items() if isinstance(value, list)}
        return {**named, "cpu": self.cpu._asdict(), **lists}


def survey() -> Survey:
    """Look at this machine. Takes some seconds, most of them for importing libraries and compiling."""
    with ThreadPoolExecutor() as pool:
        on_cpu = pool.submit(try_compiler, "cpu")  # meanwhile libraries are imported
        packages = check_packages()
        usable = not any(package.problem for package in packages if package.name == "torch")
        gpus, no_gpu = list_gpus() if usable else ([], "torch does not work")
        compilers = [on_cpu.result(), *([try_compiler("cuda")] if gpus else [])] if usable else []
    bad = [f"{package.name} {package.problem}" for package in packages if package.problem]
    problem = next((line for line in bad if "pip install" in line), next(iter(bad), None))  # others may follow from it
    return Survey(
        fedadamw=find_version("fedadamw"),
        python=platform.python_version(),
        system=platform.platform(),
        problem=problem or try_round(),
        packages=packages,
        cpu=describe_cpu(),
        gpus=gpus,
        no_gpu=no_gpu,
        compilers=compilers,
        extras=check_extras(),
        plugins={name: ", ".join(map(str, plugins)) for name, plugins in find_plugins().items()},
        places=check_places(),
        environment=list_flags(),
    )


def try_round() -> str | None:
    """Run a round of FedAdamW on one client with one weight; return what went wrong, None if it worked."""
    try:
        import torch

        from fedadamw.blocks.blocks import Blocks
        from fedadamw.optim.optimizer import FedAdamW
        from fedadamw.optim.server import Server

        model = torch.nn.Linear(2, 1)
        blocks = Blocks.of(model)
        server = Server(model, blocks)
        optimizer = FedAdamW(model.named_parameters(), lr=0.1, blocks=blocks)
        optimizer.start_round(server.broadcast())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        server.update([optimizer.finish_round()])
    except Exception as error:  # whatever a broken installation raises
        return f"a round fails: {type(error).__name__}: {' '.join(str(error).split())}"
    return None
