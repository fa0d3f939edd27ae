"""Compare FedAdamW, Local AdamW and others with as many seeds as a rule that was fixed beforehand wants.

    python -m benchmarks.evidence --data ../shared/data [--workers 1] [--budget HOURS] [--only WORKLOAD,...]
    python -m benchmarks.evidence --plan      print what is left, and hours on one core
    python -m benchmarks.evidence --record    write the record in benchmarks/results from the runs that have ended

Each run has one thread. Its result is a file in runs/evidence; a run that was stopped or killed goes on where its last
checkpoint is; those that ended elsewhere come from benchmarks/results/finished. benchmarks/evidence/rule.py has the
rules, agenda.py the order.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.common import finished
from benchmarks.evidence.agenda import Agenda
from benchmarks.evidence.costs import Costs, lines_of_plan
from benchmarks.evidence.record import write_record
from benchmarks.evidence.session import Session
from benchmarks.evidence.store import FOLDER, Store, points
from benchmarks.evidence.workloads import WORKLOADS
from fedadamw.runner.signals import Terminated, terminate
from fedadamw.validation import InputError, check, check_one_of


def main(arguments: list[str] | None = None) -> int:
    """Run, plan or record; return the exit code."""
    args = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, terminate)
    try:
        return _act(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `--plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Terminated):
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _act(args: argparse.Namespace) -> int:
    only = [name for name in args.only.split(",") if name]
    for name in only:
        check_one_of("--only", name, WORKLOADS)
    check(args.workers >= 1, f"--workers {args.workers}: give at least 1")
    check(args.budget is None or args.budget > 0, f"--budget {args.budget}: give hours above 0")
    check(not (args.record and args.small), "--record takes the real runs: leave --small out")
    store = Store(args.out, small=args.small)
    if args.out == FOLDER and not args.small:
        finished.restore("evidence")
    if args.record:
        print(f"written: {write_record(store, record=True)}")
    agenda = Agenda({j: points(r) for j, r in store.refresh().results.items()}, only, small=args.small)
    plan = lines_of_plan(agenda, Costs(store.results))
    if args.plan or args.record:
        print("\n".join(plan))
        return 0
    check_folder(store.folder)
    print("\n".join(line for line in plan if not line.startswith(" ")), flush=True)
    with Session(store, args.data, args.workers, only, small=args.small) as session:
        session.run(None if args.budget is None else 3600 * args.budget)
    print(f"{session.ended} runs ended, {len(session.failed)} of them failed; --plan says what is left")
    return 1 if session.failed else 0


def check_folder(folder: Path) -> None:
    """Make the folder of the results; raises InputError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"--out {folder}: nothing can be written there ({error.strerror})") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.evidence", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of cifar10, glue-sst2 and glue-cola")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--budget", type=float, metavar="HOURS", help="start no run that would end later")
    parser.add_argument("--only", default="", metavar="WORKLOAD,...", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--plan", action="store_true", help="print what is left, and run nothing")
    parser.add_argument("--record", action="store_true", help="write the committed record, and run nothing")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="four rounds of two steps, to see that everything works")
    return parser


if __name__ == "__main__":
    sys.exit(main())
