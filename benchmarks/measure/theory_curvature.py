"""Measure the curvature, the blocks and the clients of small runs, for docs/theory.md.

    python -m benchmarks.measure.theory_curvature --cifar10 ../shared/data/cifar10 \
      --tiny-imagenet ../shared/data/tiny-imagenet-32 [--record]

Every number is what a command `fedadamw theory ...` writes with --json. Blocks are measured on two runs of the same
network on images of 32 x 32 pixels, one with 10 classes and one with 200.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.runner.manifest import commit, device_name

DIGITS_ROUNDS, IMAGE_ROUNDS = 40, 30
ALGORITHMS = ("fedadamw", "local-adamw")
SPECTRUM_SAMPLES, BLOCK_SAMPLES = 128, 16  # 200 outputs of 16 samples are as many rows as one core does in minutes
RUN = ("--ranks", "1", "--quiet", "-s", "threads=1", "-s", "device=cpu")


def fedadamw(*words: str) -> None:
    """Run a command of the package."""
    print("fedadamw", *words, flush=True)
    subprocess.run([sys.executable, "-m", "fedadamw", *words], check=True)


def numbers_of(folder: Path, command: str, *words: str) -> Any:
    """Return what `fedadamw theory COMMAND` writes with --json, numbers with five digits."""
    file = folder / "numbers.json"
    fedadamw("theory", command, *words, "--quiet", "--json", str(file))
    return json.loads(file.read_text(), parse_float=lambda text: float(f"{float(text):.5g}"))


def measure_digits(folder: Path) -> dict[str, Any]:
    """Return the spectra of a run of digits at both ends, and how clients differ under two algorithms."""
    for name in ALGORITHMS:
        given = ("-s", f"algorithm.name={name}", "-s", f"training.rounds={DIGITS_ROUNDS}")
        quick = ("-s", "training.diagnostics=true", "-s", f"training.evaluate_every={DIGITS_ROUNDS}")
        fedadamw("run", "digits", *given, *quick, *RUN, "--out", str(folder / name))
    run, samples = str(folder / ALGORITHMS[0]), ("--samples", str(SPECTRUM_SAMPLES))
    spectra = {at: numbers_of(folder, "spectrum", run, "--at", at, *samples) for at in ("start", "end")}
    spectra["hessian"] = numbers_of(folder, "spectrum", run, "--matrix", "hessian", *samples)
    clients = numbers_of(folder, "variance", *(str(folder / name) for name in ALGORITHMS))
    return {"rounds": DIGITS_ROUNDS, "spectra": spectra, "clients": clients}


def measure_images(folder: Path, recipe: str, data: str) -> dict[str, Any]:
    """Return the blocks of a run on images, at both ends."""
    run = folder / Path(recipe).name
    given = ("-s", f"data.source={data}", "-s", f"training.rounds={IMAGE_ROUNDS}")
    quick = ("-s", f"training.evaluate_every={IMAGE_ROUNDS}")
    fedadamw("run", recipe, *given, *quick, *RUN, "--out", str(run))
    samples = ("--samples", str(BLOCK_SAMPLES))
    blocks = {at: numbers_of(folder, "blocks", str(run), "--at", at, *samples) for at in ("start", "end")}
    return {"recipe": recipe, "rounds": IMAGE_ROUNDS, **blocks}


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--cifar10", default="uoft-cs/cifar10")
    parser.add_argument("--tiny-imagenet", default="zh-plus/tiny-imagenet")
    args = parser.parse_args()
    content: dict[str, Any] = {"commit": commit(), "device": device_name(torch.device("cpu"))}
    with TemporaryDirectory() as name:
        folder = Path(name)
        content["digits"] = measure_digits(folder)
        content["cifar10"] = measure_images(folder, "small/cifar10-vit-dir0.1", args.cifar10)
        content["tiny-imagenet"] = measure_images(folder, "small/tiny-imagenet-vit-dir0.1", args.tiny_imagenet)
    for facts in (content["cifar10"]["start"], content["cifar10"]["end"], content["tiny-imagenet"]["start"]):
        facts["curvature"]["maps"] = []  # larger than all else, and not drawn
    records.write("theory-curvature", "cpu", content, record=args.record)


if __name__ == "__main__":
    main()
