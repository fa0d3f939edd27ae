"""The command line options that all benchmarks share."""

import argparse
from collections.abc import Sequence


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
