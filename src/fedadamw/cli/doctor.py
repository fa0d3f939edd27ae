"""`fedadamw doctor`: whether fedadamw works here, and what is missing for what."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fedadamw.cli.app import app

if TYPE_CHECKING:
    from fedadamw.machine.survey import Survey

Row = tuple[str, str]
NEEDED = {"cpu": "g++ or clang++", "cuda": "Triton and a C compiler"}  # by torch.compile


@app.command("doctor", short_help="Check this installation and machine.")
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a bug report.")] = False,  # noqa: FBT002
) -> None:
    """Show versions, devices, compiler, optional parts and folders, and what is missing for what.

    Ends with code 0 if the core works: training and evaluation on this machine.

    \b
    fedadamw doctor
    fedadamw doctor --json > report.json
    """
    from fedadamw.machine.survey import survey

    found = survey()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print(found)
    if found.problem:
        raise typer.Exit(1)


def _print(found: "Survey") -> None:
    typer.echo(f"fedadamw {found.fedadamw}, Python {found.python}, {found.system}")
    sections = {
        "core": _list_packages(found),
        "devices": _list_devices(found),
        "torch.compile": _list_compilers(found),
        "optional": _list_extras(found),
        "algorithms of other packages": found.plugins.items(),
        "folders": _list_places(found),
        "environment": found.environment.items(),
    }
    for title, rows in sections.items():
        _print_section(title, list(rows))
    typer.echo(f"\nfedadamw does not work here: {found.problem}" if found.problem else "\nfedadamw works here")


def _print_section(title: str, rows: list[Row]) -> None:
    if rows:
        typer.echo(f"\n{title}")
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        typer.echo(f"  {name:<{width}}  {text}")


def _list_packages(found: "Survey") -> Iterable[Row]:
    good = ", ".join(f"{package.name} {package.version}" for package in found.packages if not package.problem)
    return [("works", good), *((package.name, package.problem) for package in found.packages if package.problem)]


def _list_devices(found: "Survey") -> Iterator[Row]:
    cpu = found.cpu
    memory = "memory unknown" if cpu.memory_gb is None else f"{cpu.memory_gb} GB of memory"
    yield "cpu", f"{cpu.name}: {cpu.cores} of {cpu.all_cores} cores, {memory}, {_in_bfloat16(cpu.bfloat16)}"
    for number, gpu in enumerate(found.gpus):
        memory = f"{gpu.free_gb} of {gpu.memory_gb} GB of memory free"
        yield f"cuda:{number}", f"{gpu.name}: {memory}, {_in_bfloat16(gpu.bfloat16)}"
    if found.no_gpu:
        yield "no more" if found.gpus else "no GPU", found.no_gpu


def _in_bfloat16(supported: bool | None) -> str:  # noqa: FBT001  (a value, not a switch)
    words = {True: "bf16 in hardware", False: "no bf16 in hardware", None: "bf16 in hardware unknown"}
    return words[supported]


def _list_compilers(found: "Survey") -> Iterator[Row]:
    for compiler in found.compilers:
        if compiler.works:
            yield compiler.device, f"works, in {compiler.wall_s} s"
        else:
            yield compiler.device, f"fails: {compiler.problem}"
            yield "", f"steps run uncompiled, which is slower for large models; it needs {NEEDED[compiler.device]}"


def _list_extras(found: "Survey") -> Iterator[Row]:
    for extra in found.extras:
        versions = ", ".join(f"{name} {version}" for name, version in extra.packages.items() if version)
        missing = f"missing, for {extra.purpose}: {extra.install}"
        yield extra.name, missing if extra.install else versions


def _list_places(found: "Survey") -> Iterator[Row]:
    for place in found.places:
        bad = f"cannot be written to ({place.problem}); {place.without}"
        yield place.purpose, f"{place.path}: {bad if place.problem else f'{place.free_gb:,} GB free'}"
