"""Compare FedAdamW, Local AdamW and FedAvg on `cifar10-small`, each at its best learning rate.

The learning rate is chosen on a held-out tenth of the training set, from a grid that grows until its best value is not
at its edge; the curves are then run on the test set with several seeds. Finished runs are kept in the record and not
run again.

    python -m benchmarks.measure.cifar10_small --data ../shared/data/cifar10 --workers 2 --seeds 3 [--record]
"""

import json
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import altair as alt
import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.prepare.simulation import prepare
from fedadamw.report.metrics import format_main_metric, score
from fedadamw.report.run_charts import save_chart
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

WHAT, DEVICE = "cifar10-small", "cpu"
PICTURE = records.ROOT / "docs" / "cifar10-small.png"
GRIDS = {"fedadamw": [3e-4, 1e-3, 3e-3], "local-adamw": [3e-4, 1e-3, 3e-3], "fedavg": [0.03, 0.1, 0.3]}


def run(data: str, algorithm: str, lr: float, seed: int, validation: float) -> dict:
    """Run one training with one thread; return the records of its evaluated rounds."""
    settings = [f"algorithm.name={algorithm}", f"training.lr={lr}", f"seed={seed}", f"data.validation={validation}"]
    revision = commit()  # of the code that runs; the checkout can change until the end
    experiment = load("cifar10-small", [*settings, f"data.source={data}", "threads=1", "device=cpu"])
    rounds = [asdict(record) for record in prepare(experiment).simulation().rounds()]
    evaluated = [r for r in rounds if score(r) is not None]
    about = {"algorithm": algorithm, "lr": lr, "seed": seed, "validation": validation, "commit": revision}
    return {**about, "wall_s": round(sum(r["wall_s"] for r in rounds), 1), "records": evaluated}


class Runs:
    """The finished runs, written to the record after each."""

    def __init__(self, data: str, workers: int, *, record: bool) -> None:
        self.data, self.workers, self.record = data, workers, record
        path = records.path_of(WHAT, DEVICE, record=record)
        self.done = json.loads(path.read_text())["runs"] if path.exists() else []

    def get(self, *wanted: tuple[str, float, int, float]) -> list[dict]:
        """Return these runs; run those that are missing."""
        keys = ("algorithm", "lr", "seed", "validation")
        missing = [w for w in wanted if not any(tuple(r[k] for k in keys) == w for r in self.done)]
        with ProcessPoolExecutor(self.workers) as pool:
            for future in as_completed([pool.submit(run, self.data, *w) for w in missing]):
                self.done.append(future.result())
                self._save()
                last = self.done[-1]
                metrics = format_main_metric(last["records"][-1]["test_metrics"])
                print(*(f"{k}={last[k]}" for k in keys), f"{metrics} wall_s={last['wall_s']}", flush=True)
        return [next(r for r in self.done if tuple(r[k] for k in keys) == w) for w in wanted]

    def _save(self) -> None:
        machine = {"device": f"cpu, {platform.machine()}, 1 thread a run", "torch": torch.__version__}
        order = sorted(self.done, key=lambda r: (-r["validation"], r["algorithm"], r["lr"], r["seed"]))
        content = {**machine, "recipe": "cifar10-small", "runs": order}
        records.write(WHAT, DEVICE, content, record=self.record)


def find_best_lr(runs: Runs, algorithm: str, grid: list[float]) -> float:
    """Return the learning rate with the best held-out accuracy; the grid grows while the best is at its edge."""
    tried = {lr: accuracy(r) for lr, r in zip(grid, runs.get(*((algorithm, lr, 0, 0.1) for lr in grid)), strict=True)}
    best = max(tried, key=tried.__getitem__)
    if best == grid[0]:
        return find_best_lr(runs, algorithm, [float(f"{best / 3:.1g}"), *grid])
    if best == grid[-1]:
        return find_best_lr(runs, algorithm, [*grid, float(f"{best * 3:.1g}")])
    return best


def accuracy(result: dict) -> float:
    return score(result["records"][-1])


def table(runs: Runs, best: dict[str, float], seeds: int) -> str:
    """Final test accuracy of each algorithm at its best learning rate, as Markdown."""
    lines = ["| algorithm | learning rate | grid | test accuracy | per seed |", "| --- | --- | --- | --- | --- |"]
    for name, lr in best.items():
        finals = [accuracy(r) for r in runs.get(*((name, lr, seed, 0.0) for seed in range(seeds)))]
        tried = sorted({r["lr"] for r in runs.done if r["algorithm"] == name and r["validation"]})
        spread = statistics.stdev(finals) if len(finals) > 1 else 0.0
        grid, each = ", ".join(f"{t:g}" for t in tried), ", ".join(f"{a:.1%}" for a in finals)
        lines.append(f"| {name} | {lr:g} | {grid} | {statistics.mean(finals):.1%} ± {spread:.1%} | {each} |")
    return "\n".join(lines)


def draw(runs: Runs, best: dict[str, float], seeds: int, picture: Path) -> None:
    """Draw the test accuracy by round: the mean over seeds, with a band from the lowest to the highest."""
    rows = [
        {"round": r["round"], "score": score(r), "algorithm": f"{name}, lr {lr:g}"}
        for name, lr in best.items()
        for done in runs.get(*((name, lr, seed, 0.0) for seed in range(seeds)))
        for r in done["records"]
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("round:Q", title="round"),
        color=alt.Color(
            "algorithm:N",
            title=None,
            scale=alt.Scale(range=["#2563eb", "#64748b", "#ea580c"]),
            legend=alt.Legend(orient="bottom-right", symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3),
        ),
    )
    y = alt.Y("mean(score):Q", title="test accuracy", axis=alt.Axis(format="%"))
    low = alt.Y("min(score):Q", title="test accuracy")
    band = base.mark_area(opacity=0.15).encode(y=low, y2="max(score):Q")
    save_chart((band + base.mark_line(strokeWidth=2.5).encode(y=y)).properties(width=560, height=280), picture)


def main() -> None:
    parser = new_parser(__doc__, devices=(DEVICE,))
    parser.add_argument("--data", default="uoft-cs/cifar10")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs = Runs(args.data, args.workers, record=args.record)
    runs.get(*((name, lr, 0, 0.1) for name, grid in GRIDS.items() for lr in grid))
    best = {name: find_best_lr(runs, name, grid) for name, grid in GRIDS.items()}
    runs.get(*((name, lr, seed, 0.0) for seed in range(args.seeds) for name, lr in best.items()))
    print(table(runs, best, args.seeds))
    picture = PICTURE if args.record else records.path_of(WHAT, DEVICE, record=False).with_suffix(".png")
    draw(runs, best, args.seeds, picture)


if __name__ == "__main__":
    main()
