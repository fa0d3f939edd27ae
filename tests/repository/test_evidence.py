"""The harness of comparisons: its rules and order on made-up scores, its record and pages."""

import json
from functools import lru_cache

import numpy as np
import pytest
from support.checkout import ROOT

from benchmarks.common import records
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import budgets, record, rule
from benchmarks.evidence.agenda import LEVELS, Agenda, variants_of
from benchmarks.evidence.costs import Costs, lines_of_plan
from benchmarks.evidence.jobs import Job, experiment
from benchmarks.evidence.store import Store, points
from benchmarks.evidence.variants import BASE, CANDIDATE, MAIN, VARIANTS
from benchmarks.evidence.workloads import RUNGS, WORKLOADS, first_rates
from benchmarks.pages import evidence, which_optimizer
from fedadamw.validation import InputError

SPREAD = (0.0, 2.0, 4.0, 6.0, 8.0)  # standard deviation 3.2


def by_seed(values, start=0.0):
    return {10 + i: start + value for i, value in enumerate(values)}


@lru_cache
def training_of(workload):
    return experiment(Job(workload, BASE, 1e-3, 10, tuning=False)).training


def finished(job, points):
    """A made-up result with this score, in points; None: it diverged."""
    settings = training_of(job.workload)
    rounds = [settings.rounds // 2, settings.rounds]
    return {
        **job._asdict(),
        "error": None if points is not None else "diverged",
        "metric": "accuracy" if points is not None else "",
        "rounds": settings.rounds,
        "round": rounds if points is not None else [],
        "score": [points / 200, points / 100] if points is not None else [],
        "train_loss": 1.0,
        "up_bytes_a_client": 2e6 if job.variant == "fedmuon" else 1e6,
        "down_bytes_a_client": 1e6,
        "clients": settings.clients_per_round,
        "steps": settings.steps,
        "wall_s": 50.0,
        "cpu_s": 40.0,
        "start_s": 2.0,
        "commit": "c",
        "device": "cpu",
        "versions": {"torch": "2"},
    }


def play(scores_of, levels=LEVELS, only=("digits",), most=400):
    """Run the agenda with made-up scores until nothing is left; return what ran, in order."""
    scores, order = {}, []
    while len(order) < most:
        agenda = Agenda(scores, only)
        job = next((job for level in levels for job in agenda.jobs_of(level)), None)
        if job is None:
            return scores, order
        scores[job] = scores_of(job)
        order.append(job)
    raise AssertionError("no end")


def by_rate(job):
    """Best at 1e-3; FedAdamW two points above the base in every seed, the candidate by chance more or less."""
    score = 50.0 - abs(RUNGS.index(job.lr) - RUNGS.index(1e-3)) * 5 + job.seed
    wave = 3.0 * (-1) ** job.seed
    return score + {"fedadamw": 2.0, CANDIDATE: wave}.get(job.variant, 0.0) * (not job.tuning)


def test_a_score_is_the_mean_over_the_last_tenth_of_the_rounds():
    assert rule.tail_score([50, 54, 57, 60], [0.9, 0.8, 0.3, 0.5], 60) == pytest.approx(0.4)
    assert rule.tail_score([5, 10], [0.1, 0.2], 10) == 0.2
    assert rule.tail_score([57, 60], [None, 0.5], 60) is None


def test_a_comparison_is_of_pairs_with_the_same_seed():
    ours, base = by_seed([3.0, 4.0, 5.0, 6.0, 9.0]), by_seed([1.0, 2.0, 3.0, 4.0, 6.0])
    paired = rule.compare({**ours, 99: 0.0}, base)
    assert (paired.n, paired.difference) == (5, pytest.approx(2.2))
    half = 2.7764451 * 0.4472136 / 5**0.5  # Student t of 4 degrees of freedom; standard deviation of 2 2 2 2 3
    assert (paired.low, paired.high) == (pytest.approx(2.2 - half), pytest.approx(2.2 + half))
    assert paired.effect == pytest.approx(2.2 / 0.4472136)
    assert paired.verdict == "above"


@pytest.mark.parametrize(
    ("differences", "verdict", "is_not_below"),
    [
        ([-1.0, 0.0, 1.0, 2.0, -2.0], "not told apart", False),
        ([-0.2, 0.0, 0.2, 0.1, -0.1], "not told apart", True),
        ([-3.0, -3.1, -2.9, -3.0, -3.0], "below", False),
        ([3.0, 3.1, 2.9, 3.0], "too few seeds", False),
    ],
)
def test_what_an_interval_says(differences, verdict, is_not_below):
    paired = rule.compare(by_seed(differences), by_seed([0.0] * len(differences)))
    assert (paired.verdict, paired.is_not_below) == (verdict, is_not_below)


def test_the_rule_wants_five_seeds_then_one_more_until_the_interval_is_narrow_or_twenty_are_there():
    base = dict.fromkeys(range(10, 40), 0.0)
    assert rule.seeds_wanted({}, {}) == rule.seeds_wanted(by_seed(SPREAD[:4]), base) == 5
    assert rule.seeds_wanted(by_seed([1.0, 1.1, 0.9, 1.0, 1.2]), base) == 5
    assert rule.seeds_wanted(by_seed(SPREAD), base) == 6
    assert rule.seeds_wanted(by_seed(SPREAD * 4), base) == 20
    assert rule.seeds_wanted(by_seed(SPREAD), base, most=5) == 5
    assert rule.seeds_wanted(by_seed(SPREAD), by_seed([0.0] * 3)) == 5, "a seed without its pair does not count"


def test_stopping_by_the_width_leaves_intervals_of_92_to_95_percent():
    """On normal differences of the standard deviations, in points, at which the rule stops early, late or never."""
    for deviation in (0.5, 1.0, 1.5, 2.0, 2.5, 5.0):
        drawn = np.random.default_rng(0).normal(0, deviation, (10_000, rule.MOST))
        running = np.ones(len(drawn), dtype=bool)
        covered = 0
        for n in range(rule.FEWEST, rule.MOST + 1):
            means, half = drawn[:, :n].mean(1), rule.half_width(1.0, n) * drawn[:, :n].std(1, ddof=1)
            ends = running & ((2 * half < rule.WIDTH) | (n == rule.MOST))
            covered += int((ends & (abs(means) < half)).sum())
            running &= ~ends
        assert 0.915 < covered / len(drawn) < 0.955, deviation


def test_the_rule_does_not_look_at_the_sign_of_a_difference():
    base = dict.fromkeys(range(10, 40), 0.0)
    for shift in (-50.0, 0.0, 50.0):
        assert rule.seeds_wanted(by_seed(SPREAD, shift), base) == 6


def test_a_grid_of_rates_grows_at_the_end_where_its_best_is_and_a_second_seed_decides_between_close_ones():
    first = (3e-4, 1e-3)
    assert rule.next_trials({}, first, RUNGS) == [(3e-4, 0), (1e-3, 0)]
    tried = {(3e-4, 0): 10.0, (1e-3, 0): 20.0}
    assert rule.next_trials(tried, first, RUNGS) == [(3e-3, 0)]
    tried[3e-3, 0] = 19.5
    assert rule.next_trials(tried, first, RUNGS) == [(1e-3, 1), (3e-3, 1)]
    tried |= {(1e-3, 1): 20.0, (3e-3, 1): 22.0}
    assert rule.next_trials(tried, first, RUNGS) == []
    assert rule.best_rate(tried) == 3e-3


def test_a_clear_best_rate_needs_no_second_seed_and_a_diverged_one_is_never_chosen():
    tried = {(3e-4, 0): 10.0, (1e-3, 0): 20.0, (3e-3, 0): None}
    assert rule.next_trials(tried, (3e-4, 1e-3), RUNGS) == []
    assert rule.best_rate(tried) == 1e-3
    both_fell = {(1e-3, 0): 20.0, (3e-3, 0): 19.5, (3e-4, 0): 15.0, (1e-3, 1): None, (3e-3, 1): None}
    assert rule.best_rate(both_fell) == 3e-4, "one that diverged with the second seed is not chosen either"
    nothing = {(lr, 0): None for lr in RUNGS}
    assert rule.best_rate(nothing) is None
    assert rule.next_trials(nothing, (3e-4, 1e-3), RUNGS) == []


def test_the_main_variants_of_all_workloads_come_before_anything_else():
    _, order = play(by_rate, LEVELS[:1], only=("digits", "vit-0.1"))
    assert {job.variant for job in order} == set(MAIN)
    assert {job.workload for job in order} == {"digits", "vit-0.1"}
    for variant in MAIN:
        own = [job for job in order if (job.workload, job.variant) == ("digits", variant)]
        assert [job.seed for job in own if not job.tuning] == [10, 11, 12, 13, 14]
        tuning = [i for i, job in enumerate(own) if job.tuning]
        assert tuning == list(range(len(tuning))), "tuned before the first reported run"


def test_seeds_are_added_only_where_the_rule_wants_them_and_the_base_has_them_all():
    scores, _ = play(by_rate, [level for level in LEVELS if level.kind == "main" and not level.long])
    agenda = Agenda(scores, ("digits",))
    counts = {v: len(agenda.reported(WORKLOADS["digits"], v)) for v in MAIN}
    assert counts == {BASE: 20, "fedadamw": 5, CANDIDATE: 20}
    assert rule.FIRST_SEED not in rule.TUNING_SEEDS


def test_another_seed_takes_the_place_of_one_that_diverged():
    def scores_of(job):
        lost = (job.variant == CANDIDATE and job.seed == 12) or (job.variant == BASE and job.seed == 13)
        return None if lost and not job.tuning else 50.0 - abs(RUNGS.index(job.lr) - RUNGS.index(1e-3))

    scores, _ = play(scores_of, [level for level in LEVELS if level.kind == "main" and not level.long])
    agenda, digits = Agenda(scores, ("digits",)), WORKLOADS["digits"]
    assert set(agenda.reported(digits, CANDIDATE)) == set(range(10, 17))
    assert rule.compare(agenda.points(digits, CANDIDATE), agenda.points(digits, BASE)).n == rule.FEWEST


def test_every_job_of_the_agenda_has_valid_settings():
    for workload in WORKLOADS.values():
        for variant in variants_of(workload):
            assert set(first_rates(workload, VARIANTS[variant].algorithm)) <= set(RUNGS)
            settings = experiment(Job(workload.name, variant, 1e-3, 10, tuning=False))
            assert (settings.threads, settings.device, settings.data.validation) == (1, "cpu", 0)
            trial = experiment(Job(workload.name, variant, 1e-3, 0, tuning=True))
            assert 0 < trial.data.validation < 1
            assert (trial.training.rounds, trial.partition) == (settings.training.rounds, settings.partition)
            last = [r for r in range(settings.training.rounds) if settings.training.evaluates(r)]
            assert rule.tail_score([r + 1 for r in last], [0.5] * len(last), settings.training.rounds) == 0.5


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A store with all runs of a workload that the agenda wants, and the diverged one."""
    store = Store(tmp_path_factory.mktemp("evidence"))
    scores, _ = play(by_rate, LEVELS[:4])
    for job, score in scores.items():
        store.write(job, finished(job, score))
    diverged = max(job for job in scores if job.variant == "fedavg" and not job.tuning)
    store.write(diverged, finished(diverged, None))
    return store


def test_a_record_has_every_run_and_says_what_is_missing(made_up, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    path = record.write_record(made_up, record=True)
    found = json.loads(path.read_text())
    assert found["rule"]["fewest"] == 5
    (workload,) = found["workloads"]
    assert [v["name"] for v in workload["variants"]][:3] == list(MAIN)
    assert len(path.read_text().splitlines()) < 400, "a run is one line"
    text = evidence.describe(found)
    assert "+2.0 (+2.0 to +2.0), 5 seeds | above |" in text
    assert "too few seeds, 1 diverged" in text
    assert "stopped at 10 seeds, the rule wants more" in text
    assert "- Not begun: ViT, CIFAR-10, Dirichlet 0.1; " in text
    assert "not reached" in text
    (candidate,) = [v for v in workload["variants"] if v["name"] == CANDIDATE]
    candidate["runs"] = [{**run, "score": [1.0, 1.0]} for run in candidate["runs"]]
    assert "above on 1 (small ViT, digits, Dirichlet 0.3)" in evidence.describe(found)
    candidate["runs"][0]["error"] = "diverged"
    assert "not below on none, above on none" in evidence.describe(found)


def test_a_record_is_not_replaced_by_an_empty_one(made_up, monkeypatch, tmp_path):
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    before = record.write_record(made_up, record=True).read_bytes()
    with pytest.raises(InputError, match="empty has no results, and the committed record has some"):
        record.write_record(Store(tmp_path / "empty"), record=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "/dev/null/x"], "--out /dev/null/x: nothing can be written there"),
        (["--record", "--small"], "--record takes the real runs: leave --small out"),
    ],
)
def test_nothing_runs_or_is_recorded_where_that_is_of_no_use(words, says, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    monkeypatch.setattr(command, "Session", None)
    assert command.main([*words, "--only", "digits"]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_rules_are_written_before_anything_was_run(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "COMMITTED", tmp_path)
    text = evidence.section()
    assert "A comparison has 5 seeds, and then one more as long as the 95% interval" in text
    assert text.endswith("; ".join(w.title for w in WORKLOADS.values()) + ".\n")


def test_variants_are_compared_at_equal_steps_bytes_and_time(made_up):
    (workload,) = record.content(made_up)["workloads"]
    variants = {v["name"]: v for v in workload["variants"]}
    costs = {name: budgets.costs_of(workload, variants[name]) for name in (BASE, "fedmuon")}
    assert costs["fedmuon"].bytes == 2 * costs[BASE].bytes
    assert budgets.budget_of(costs, "bytes") == costs[BASE].bytes
    whole, half = (
        budgets.scores_at(workload, variants["fedmuon"], cost, costs[BASE].bytes)
        for cost in (costs[BASE].bytes, costs["fedmuon"].bytes)
    )
    assert half == {seed: pytest.approx(score / 2) for seed, score in whole.items()}
    page = which_optimizer.page(record.content(made_up))
    assert "| FedMuon | 2.00 | 1.00 | 1.00 | 1 |" in page
    assert "| small ViT, digits, Dirichlet 0.3 | FedAdamW; not told apart: FedAdamW with `memory=1` |" in page


def test_results_of_other_settings_are_left_out(made_up, tmp_path):
    store = Store(tmp_path)
    job = next(iter(made_up.refresh().results))
    store.write(job, finished(job, 50.0))
    path = store.file(job)
    path.rename(path.with_name(path.name.replace(job.name[-8:], "00000000")))
    assert store.refresh().results == {}


def test_the_plan_says_what_is_left(made_up):
    results = made_up.refresh().results
    agenda = Agenda({job: points(result) for job, result in results.items()}, ("digits",))
    plan = lines_of_plan(agenda, Costs(results))
    assert plan[0] == "five seeds of the main variants: about 0 runs, 0.0 hours (0.0 in all)"
    assert plan[-1].startswith("up to twenty seeds in the long workloads: about 0 runs")
    assert Costs(results).run_s("digits") == 52.0


def test_wrong_options_are_one_line(capsys, tmp_path):
    assert command.main(["--only", "vit", "--plan"]) == 2
    assert command.main(["--workers", "0"]) == 2
    assert command.main(["--only", "vit-0.1", "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert errors[2] == f"error: {tmp_path}/cifar10: no such folder; vit-0.1 needs it (--data)"


def test_the_page_which_optimizer_is_generated_from_the_committed_record():
    found = records.read_newest("evidence", "cpu")
    if found is None:
        pytest.skip("nothing was recorded yet")
    page = (ROOT / "docs" / "which-optimizer.md").read_text()
    assert which_optimizer.page(found) == page, "run python -m benchmarks.pages.which_optimizer"
