"""The command line options that all benchmarks share."""

import argparse
from collections.abc import Callable, Collection, Sequence


def new_parser(description: str | None, devices: Sequence[str] = ("cpu", "cuda")) -> argparse.ArgumentParser:
    """A parser with `--device`, of which the benchmark supports `devices`, and `--record`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=devices, default=devices[0])
    parser.add_argument(
        "--record",
        action="store_true",
        help="write the committed record in benchmarks/results, not a scratch file in runs/benchmarks",
    )
    return parser


def names_of(known: Collection[str]) -> Callable[[str], str]:
    """The type of an option of names with commas between, each of which is known."""

    def names(text: str) -> str:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)[0]!r} is unknown; use some of {', '.join(known)}")
        return text

    return names
