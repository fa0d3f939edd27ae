"""Compute the PAC-Bayes bound of a run of the recipe digits, with both kinds of moments, for docs/theory.md.

python -m benchmarks.measure.theory_bound [--record]
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.runner.manifest import commit, device_name
from fedadamw.theory.bound import MOMENTS, RHOS
from fedadamw.theory.bound_output import bound_facts
from fedadamw.theory.bound_run import read_run

RECIPE, ROUNDS, SAMPLES = "digits", 60, 2048


def main() -> None:
    args = new_parser(__doc__, devices=("cpu",)).parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["run", RECIPE, "-s", f"training.rounds={ROUNDS}", "--ranks", "1", "--out", str(run), "--quiet"]
        subprocess.run([sys.executable, "-m", "fedadamw", *words], check=True)
        measured = read_run(run, SAMPLES, (), lambda *_: None)
    content = {"commit": commit(), "device": device_name(torch.device("cpu")), "recipe": RECIPE, "rounds": ROUNDS}
    content |= {moments: bound_facts(measured, RHOS, moments) for moments in MOMENTS}
    records.write("theory-bound", "cpu", content, record=args.record)


if __name__ == "__main__":
    main()
