"""Attack trained models: was this digit in the training data? With and without differential privacy of samples.

The likelihood-ratio attack (LiRA, arXiv 2112.03570), online. 32 models of each kind are trained on random halves of
the 1,797 digits, over four clients; each digit is in half of them. Each model in turn is the target and the others are
the attacker's shadow models: of a digit's confidence (logit of the right class's probability) they give one normal
distribution with the digit in the training data, and one without. The digit's score is the log-likelihood ratio of the
target's own confidence. The attacker sees the final model only; a server sees every upload.

Each run is one file in runs/membership; finished ones are not repeated.

    python -m benchmarks.measure.membership [--workers 1] [--record]
    python -m benchmarks.measure.membership --small      # eight short runs of each, to try it
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

import fedadamw
from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.digits_mlp import make_mlp, read_digits
from benchmarks.common.records import ROOT
from benchmarks.common.resumable import run_all
from fedadamw.checkpoint import write_atomically

WHAT, FOLDER = "membership", ROOT / "runs" / "membership"
EPSILONS = {"none": None, "epsilon 8": 8.0, "epsilon 1": 1.0}  # of the samples' privacy
DELTA, CLIP = 1e-5, 1.0
MODELS, SMALL_MODELS = 32, 8  # of each kind
CLIENTS, WIDTH = 4, 128  # hidden units
ROUNDS, SMALL_ROUNDS = 40, 2
TRAINING: dict[str, Any] = {"steps": 10, "batch_size": 64, "lr": 3e-3}
FALSE_POSITIVES = 0.01  # at which true positives are counted


class Job(NamedTuple):
    """One run."""

    kind: str
    number: int
    small: bool = False

    @property
    def file(self) -> Path:
        """Where its result is, once it is finished."""
        folder = FOLDER / "small" if self.small else FOLDER
        return folder / f"{self.kind.replace(' ', '-')}-{self.number}.json"


def jobs(kind: str, *, small: bool) -> list[Job]:
    """Return all runs of a kind."""
    return [Job(kind, number, small) for number in range(SMALL_MODELS if small else MODELS)]


def draw_members(number: int, n: int) -> np.ndarray:
    """Return which of `n` samples model `number` is trained on, (n,): a random half; the next model has the other."""
    order = np.random.default_rng(number // 2).permutation(n)
    members = np.zeros(n, dtype=bool)
    members[order[: n // 2]] = True
    return members if number % 2 == 0 else ~members


def run(job: Job) -> None:
    """Train one model with one thread and write its confidences."""
    torch.set_num_threads(1)
    begun = time.process_time()
    (pixels, labels), epsilon = read_digits(), EPSILONS[job.kind]
    members = draw_members(job.number, len(labels))
    inside, outside = torch.from_numpy(np.nonzero(members)[0]), torch.from_numpy(np.nonzero(~members)[0])
    settings = {} if epsilon is None else {"privacy.epsilon": epsilon, "privacy.delta": DELTA, "privacy.clip": CLIP}
    rounds = SMALL_ROUNDS if job.small else ROUNDS
    result = fedadamw.simulate(
        partial(make_mlp, WIDTH),
        (pixels[inside], labels[inside]),
        (pixels[outside], labels[outside]),
        np.array_split(np.random.default_rng((job.number, 1)).permutation(len(inside)), CLIENTS),
        rounds=rounds,
        seed=job.number,
        device="cpu",
        settings={"threads": 1, "training.evaluate_every": rounds, **settings},
        quiet=True,
        **TRAINING,
    )
    with torch.no_grad():
        logits = result.model(pixels)
    content = {
        **job._asdict(),
        "accuracy": float((logits.argmax(1) == labels)[outside].float().mean()),
        "confidences": [round(x, 5) for x in scale_confidences(logits, labels).tolist()],
        "cpu_s": round(time.process_time() - begun, 1),
    }
    job.file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.file, (json.dumps(content) + "\n").encode())


def scale_confidences(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the right class's probability, (n,), from logits (n, classes)."""
    right = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(right, -torch.inf).logsumexp(1)
    return logits[right] - others


def attack(confidences: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return the log-likelihood ratios (models, samples) that a sample was a model's; each model is the target once.

    confidences, members: (models, samples). Each sample's distributions have means of their own and share a standard
    deviation, since there are few shadow models.
    """
    scores = np.empty_like(confidences)
    for target in range(len(confidences)):
        shadows = np.arange(len(confidences)) != target
        likelihoods = []
        for inside in (members[shadows], ~members[shadows]):
            own = np.where(inside, confidences[shadows], np.nan)
            means = np.nanmean(own, axis=0)
            deviation = math.sqrt(np.nanmean((own - means) ** 2))
            likelihoods.append(stats.norm.logpdf(confidences[target], means, deviation))
        scores[target] = likelihoods[0] - likelihoods[1]
    return scores


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Return the area under the ROC curve: the probability that a member's score is above another sample's."""
    ranks = stats.rankdata(scores)
    inside = int(members.sum())
    total = float(ranks[members].sum()) - inside * (inside + 1) / 2
    return total / (inside * (len(members) - inside))


def true_positives(scores: np.ndarray, members: np.ndarray, false_positives: float) -> float:
    """Return the share of members above the threshold that so large a share of the other samples exceeds."""
    threshold = np.quantile(scores[~members], 1 - false_positives, method="higher")
    return float((scores[members] > threshold).mean())


def result_of(kind: str, *, small: bool) -> dict[str, Any]:
    """Return what the record keeps of a kind: the attack on each model, and on all together."""
    runs = [json.loads(job.file.read_text()) for job in jobs(kind, small=small)]
    confidences = np.array([run["confidences"] for run in runs])
    members = np.array([draw_members(run["number"], confidences.shape[1]) for run in runs])
    scores = attack(confidences, members)
    targets = list(zip(scores, members, strict=True))
    return {
        "epsilon": EPSILONS[kind],
        "accuracy": [run["accuracy"] for run in runs],
        "auc": [auc(*target) for target in targets],
        "true_positives": [true_positives(*target, FALSE_POSITIVES) for target in targets],
        "cpu_s": sum(run["cpu_s"] for run in runs),
    }


def missing(*, small: bool) -> Iterator[Job]:
    """Yield the runs that have not ended."""
    for kind in EPSILONS:
        yield from (job for job in jobs(kind, small=small) if not job.file.exists())


def say(job: Job) -> str:
    """Return the line that is printed when a run has ended."""
    result = json.loads(job.file.read_text())
    return f"{job.file.stem}: {100 * result['accuracy']:.1f} in {result['cpu_s']:.0f} s"


def main() -> None:
    args = parse()
    run_all(partial(missing, small=args.small), run, args.workers, say)
    content = {
        **records.provenance(("dp-accounting",)),
        "delta": DELTA,
        "clip": CLIP,
        "clients": CLIENTS,
        "width": WIDTH,
        "rounds": SMALL_ROUNDS if args.small else ROUNDS,
        "training": TRAINING,
        "samples": len(read_digits()[1]),
        "false_positives": FALSE_POSITIVES,
        "small": args.small,
        "kinds": {kind: result_of(kind, small=args.small) for kind in EPSILONS},
    }
    records.write(WHAT, "cpu", content, record=args.record)


def parse() -> argparse.Namespace:
    """The options; a record has all runs in full."""
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each")
    parser.add_argument("--small", action="store_true", help="eight runs of two rounds of each kind")
    args = parser.parse_args()
    if args.record and args.small:
        parser.error("a record has all runs in full: --record excludes --small")
    return args


if __name__ == "__main__":
    main()
