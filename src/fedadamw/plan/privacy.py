"""What a run with differential privacy will spend, how strong its noise is, and what would make it weaker."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from fedadamw.plan.data_shape import find_shape
from fedadamw.plan.pretended import build_problem
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.samples import load_samples, make_partition
from fedadamw.privacy.accountant import MOST
from fedadamw.privacy.classes import ClientClass, find_worst, group_clients
from fedadamw.privacy.spending import Spent, Work, find_noise, rates_of, settings_of
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.validation import check

Pair = tuple[float, int]  # rate, and how often a sum is taken


class Change(NamedTuple):
    """Something that would make the noise weaker at the same epsilon."""

    what: str
    noise_multiplier: float
    ratio: float  # as PrivacyPlan.ratio


@dataclass(frozen=True)
class PrivacyPlan:
    """What a run will spend."""

    privacy: PrivacySettings
    rounds: int
    trained: int  # numbers, d
    noise_multiplier: float
    epsilon: float  # of the client that spends most
    worst: Pair  # its rate and sums
    classes: list[ClientClass]
    ratio: float  # norm of the noise over the largest of a mean: sigma sqrt(d) / B, or S; n_i, if that is below B
    helps: list[Change]
    every_round: bool  # whether clients count as working in every round

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON has it, without numbers that are not finite."""
        found = asdict(self)
        found |= {"unit": self.privacy.unit, "delta": self.privacy.delta, "privacy": self.privacy.model_dump()}
        found["classes"] = [{**each._asdict(), "epsilon": finite(each.epsilon)} for each in self.classes]
        found["helps"] = [change._asdict() for change in self.helps]
        return {**found, "epsilon": finite(self.epsilon)}


def finite(number: float) -> float | None:
    """Return a number, or None if it is infinite."""
    return number if math.isfinite(number) else None


def plan_privacy(experiment: Experiment, samples: Sequence[int] | None = None) -> PrivacyPlan:
    """Return the plan of `experiment`, of whose data only the partition is used.

    samples: of nodes whose data are elsewhere, in place of the partition; each may work in every round.
    """
    privacy = settings_of(experiment)
    remote = samples is not None or experiment.partition.kind == "nodes"
    check_settings(experiment, remote=experiment.partition.kind == "nodes")
    sizes = _find_sizes(experiment, samples)
    rates = rates_of(experiment, sizes, remote=remote)
    spent = Spent(rates, Work(experiment, len(sizes), remote=remote).until(experiment.training.rounds))
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.epsilon is not None
        noise = find_noise(privacy.epsilon, privacy.delta, spent.front())
    worst, epsilon = find_worst(spent, noise, privacy.delta)
    trained = count_trained(experiment)
    own = int(sizes[(spent.rates == worst[0]) & (spent.times == worst[1])].min(initial=sizes.max()))
    helps = _list_changes(experiment, own, worst, epsilon, trained)
    ratio = noise * math.sqrt(trained) / _sums_over(experiment, own)
    classes = group_clients(sizes, spent, noise, privacy.delta)
    rounds = experiment.training.rounds
    return PrivacyPlan(privacy, rounds, trained, noise, epsilon, worst, classes, ratio, helps, remote)


def _find_sizes(experiment: Experiment, samples: Sequence[int] | None) -> np.ndarray:
    """Return the samples of each client, as given or by the partition."""
    if samples is not None:
        check(all(n > 0 for n in samples) and len(samples) > 0, "--samples: give numbers above 0")
        return np.array(samples)
    if settings_of(experiment).unit == "client" and experiment.partition.kind != "column":
        return np.ones(experiment.partition.clients, np.int64)  # whatever they have
    own = experiment.partition.kind == "nodes"
    check(not own, "partition.kind='nodes': only nodes know how many samples they have; give some with --samples")
    train, _ = load_samples(experiment)
    return make_partition(experiment, train).sizes


def count_trained(experiment: Experiment) -> int:
    """Return how many numbers the experiment's model trains; nothing of it is loaded."""
    model = build_problem(experiment, find_shape(experiment)).model
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _sums_over(experiment: Experiment, own: int) -> int:
    """Return how many clipped vectors a sum is of at most: samples of a client that has `own`, or clients."""
    t = experiment.training
    return t.clients_per_round if settings_of(experiment).unit == "client" else min(t.batch_size, own)


def _list_changes(experiment: Experiment, own: int, worst: Pair, epsilon: float, trained: int) -> list[Change]:
    """Return what would make the noise weaker at the same epsilon, for the client with `own` samples that spends most.

    Without what would not: twice the batch of a client with fewer samples than a batch.
    """
    privacy, (rate, times) = settings_of(experiment), worst
    if not 0 < epsilon <= MOST:
        return []
    t, by_client = experiment.training, privacy.unit == "client"
    over, half = _sums_over(experiment, own), max(times // 2, 1)
    fewer, share = ("1/10 of the numbers trained (LoRA, or the head alone)", 10)
    if experiment.lora is not None:
        fewer, share = ("1/4 of the numbers trained (lora.r, lora.target_modules)", 4)
    if by_client:
        more, twice = f"training.clients_per_round={2 * t.clients_per_round}", min(1.0, 2 * rate)
        others, over_others, rate_others = "twice as many clients, as many a round", over, rate / 2
    else:
        more, twice = f"training.batch_size={2 * t.batch_size}", min(1.0, 2 * t.batch_size / own)
        others, over_others = "twice as many samples of that client", min(t.batch_size, 2 * own)
        rate_others = min(1.0, t.batch_size / (2 * own))
    over_twice = 2 * over if by_client else min(2 * t.batch_size, own)
    steps = "" if by_client else ", or half of the steps"
    variants = [
        (more, (twice, times), over_twice, trained),
        (f"training.rounds={max(t.rounds // 2, 1)}{steps}", (rate, half), over, trained),
        (others, (rate_others, times), over_others, trained),
        (fewer, worst, over, trained / share),
    ]
    now = find_noise(epsilon, privacy.delta, [worst]) * math.sqrt(trained) / over
    found = []
    for what, pair, of, numbers in variants:
        noise = find_noise(epsilon, privacy.delta, [pair])
        found.append(Change(what, noise, noise * math.sqrt(numbers) / of))
    return sorted((each for each in found if each.ratio < 0.99 * now), key=lambda each: each.ratio)
