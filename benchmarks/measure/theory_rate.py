"""Measure rates of convergence on the quadratic, with Gaussian and with skewed noise, for docs/theory.md.

python -m benchmarks.measure.theory_rate [--record]
"""

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.runner.manifest import commit, device_name
from fedadamw.theory.methods import DEFAULTS, parse_method
from fedadamw.theory.quadratic import NOISES
from fedadamw.theory.rate import measure_rate

MEMORIES = (10, 100, 1000)  # between the default's 1 and all

OTHERS = ("diloco:outer_lr=1,outer_momentum=0", "fadamgc", "fedavg")  # v kept by the client, restarted, none


def main() -> None:
    args = new_parser(__doc__, devices=("cpu",)).parse_args()
    torch.set_num_threads(1)
    methods = [parse_method(name) for name in (*DEFAULTS, *(f"fedadamw:memory={m}" for m in MEMORIES), *OTHERS)]
    content = {"commit": commit(), "device": device_name(torch.device("cpu"))}
    content |= {noise: measure_rate(methods, noise, quiet=False) for noise in NOISES}
    records.write("theory-rate", "cpu", content, record=args.record)


if __name__ == "__main__":
    main()
