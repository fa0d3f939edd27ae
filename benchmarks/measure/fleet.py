"""Measure what the virtual clock of 100,000 devices costs beside the training of a small ViT on digits.

Devices have log-normal speeds with jitter, drop out now and then, and are there in the times of a trace: two a day for
each. Clients hold ten digits each. Measured are reading the trace and drawing the fleet; the clock alone, whose
clients do not train, in rounds with a deadline and in buffered ones; and whole rounds of both against plain rounds, in
turns. Seconds are of processor time.

    python -m benchmarks.measure.fleet [--rounds 20] [--record]
"""

import csv
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.clock import Clock
from fedadamw.data.partition import Partition
from fedadamw.devices.fleet import Fleet
from fedadamw.prepare.simulation import Prepared, prepare
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.load import load

DEVICES, EACH, DAY_S = 100_000, 10, 86_400.0
CLOCK_ROUNDS = 200  # of the clock alone
LIMIT = 0.05  # of the training
PLAIN = "plain"
WAYS = {  # each round takes ten answers
    PLAIN: (),
    "deadline": ("federation.over_selection=0.3", "federation.deadline_s=3600", "federation.wait_s=86400"),
    "buffered": ("training.aggregation=buffered", "training.buffer=10", "training.concurrency=100"),
}


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--rounds", type=int, default=20, help="that are trained each way")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.csv"
        write_trace(trace)
        drawn, fleet = timed(lambda: Fleet.of(devices_of(trace), DEVICES, 0))
        made = {way: prepare_way(way, fleet) for way in WAYS}
        clocks = {way: measure_clock(made[way]) for way in WAYS if way != PLAIN}
        rounds = time_rounds(made, args.rounds)
    for way, found in clocks.items():
        found["of_training"] = round(found["round_s"] / rounds[PLAIN], 5)
        print(f"{way:10} clock {1e3 * found['round_s']:.2f} ms a round, {found['of_training']:.2%} of its training")
    content = {
        **records.provenance(),
        "devices": DEVICES,
        "limit": LIMIT,
        "rounds": args.rounds,
        "fleet_s": round(drawn, 2),
        "fleet_mb": round(sum(each.nbytes for each in arrays_of(fleet)) / 1e6, 1),
        "clocks": clocks,
        "round_s": {way: round(seconds, 5) for way, seconds in rounds.items()},
    }
    records.write("fleet", args.device, content, record=args.record)


def write_trace(path: Path) -> None:
    """Write the times of all devices: two a day, of half an hour to six hours each."""
    generator = np.random.default_rng(0)
    begins = np.sort(generator.random((DEVICES, 2)) * DAY_S * 0.7, axis=1)
    ends = begins + 1800 + generator.random((DEVICES, 2)) * 6 * 3600
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("device", "from_s", "to_s"))
        for device, spans in enumerate(np.stack((begins, ends), axis=2).round(1).tolist()):
            rows.writerows((device, *span) for span in spans)


def devices_of(trace: Path) -> DevicesSettings:
    """The settings of the devices."""
    return DevicesSettings.model_validate(
        {
            "speed": {"kind": "log-normal", "spread": 10.0, "samples_per_s": 1.0, "jitter": 0.1},
            "availability": {"kind": "trace", "trace": str(trace), "day_s": DAY_S, "dropout": 0.02},
        }
    )


def prepare_way(way: str, fleet: Fleet) -> Prepared:
    """Return a run of digits on all devices, each with its own choice of digits."""
    never = ("training.rounds=100000", "training.evaluate_every=100000")
    prepared = prepare(load("digits", ("device=cpu", "threads=1", "compile=off", *never, *WAYS[way])))
    samples = np.random.default_rng(1).integers(0, len(prepared.train), DEVICES * EACH)
    partition = Partition(samples, np.arange(EACH, DEVICES * EACH + 1, EACH))
    equal = Fleet.of(None, DEVICES, 0)
    return dataclasses.replace(prepared, partition=partition, fleet=equal if way == PLAIN else fleet)


def measure_clock(prepared: Prepared) -> dict[str, Any]:
    """Return the seconds of a round without training, and how much virtual time it takes."""
    settings = prepared.experiment
    of = prepared.workspace, prepared.algorithm, prepared.task, prepared.partition
    clock = Clock(*of, settings.training, settings.federation, prepared.fleet)
    seconds, ends = timed(lambda: [clock.step() for _ in range(CLOCK_ROUNDS)])
    return {"round_s": round(seconds / CLOCK_ROUNDS, 6), "virtual_s": round(ends[-1] / CLOCK_ROUNDS, 1)}


def time_rounds(made: dict[str, Prepared], count: int) -> dict[str, float]:
    """Return the mean seconds of a round each way, which take turns; the first one is not counted."""
    simulations = {way: prepared.simulation() for way, prepared in made.items()}
    taken: dict[str, list[float]] = {way: [] for way in made}
    for _ in range(count + 1):
        for way, simulation in simulations.items():
            taken[way].append(timed(simulation.step)[0])
    return {way: mean(seconds[1:]) for way, seconds in taken.items()}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of processor time that a call takes, and what it returns."""
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def arrays_of(value: object) -> list[np.ndarray]:
    """Return all arrays of a fleet and its availability."""
    if isinstance(value, np.ndarray):
        return [value]
    if dataclasses.is_dataclass(value):
        return [array for field in dataclasses.fields(value) for array in arrays_of(getattr(value, field.name))]
    return [array for item in value for array in arrays_of(item)] if isinstance(value, tuple) else []


if __name__ == "__main__":
    main()
