"""What clients spend: rates, sums, the worst client, the noise for an epsilon, and the account of a run."""

import math
from collections import Counter

import numpy as np
import pytest

from fedadamw.privacy.account import RemoteAccount, SimulatedAccount
from fedadamw.privacy.accountant import Mechanism, compute_epsilon
from fedadamw.privacy.classes import group_clients, list_assumptions
from fedadamw.privacy.spending import Spent, Work, rates_of, resolve_noise_multiplier
from fedadamw.randomness import sample_clients
from fedadamw.settings.load import build_experiment
from fedadamw.validation import InputError

SIZES = np.array([20, 40, 100, 400, 1000])
SMALL = [
    ("partition.clients", 5),
    ("training.clients_per_round", 2),
    ("training.rounds", 6),
    ("training.steps", 3),
    ("training.batch_size", 50),
]


def experiment_with(*settings):
    return build_experiment("digits", [*SMALL, *settings])


def test_the_rate_of_a_sample_is_that_of_its_clients_batches():
    experiment = experiment_with(("privacy.noise_multiplier", 1.0))
    assert rates_of(experiment, SIZES).tolist() == [1.0, 1.0, 0.5, 0.125, 0.05]


def test_a_client_is_drawn_with_its_share_and_over_a_network_counts_as_drawn():
    experiment = experiment_with(("privacy.unit", "client"), ("privacy.noise_multiplier", 1.0))
    assert rates_of(experiment, SIZES).tolist() == [0.4] * 5
    assert rates_of(experiment, SIZES, remote=True).tolist() == [1.0] * 5
    assert Work(experiment, 5).until(4).tolist() == [4] * 5


def test_a_simulated_client_spends_in_the_rounds_that_it_works_in():
    experiment = experiment_with(("privacy.noise_multiplier", 1.0), ("seed", 3))
    work = Work(experiment, 5)
    drawn = Counter(int(i) for round_ in range(6) for i in sample_clients(3, round_, 5, 2))
    assert work.until(6).tolist() == [3 * drawn[i] for i in range(5)]
    assert work.until(2).tolist() == Work(experiment, 5).until(2).tolist(), "back to an earlier round"
    assert Work(experiment, 5, remote=True).until(6).tolist() == [18] * 5, "over a network any may work in all"


def test_the_worst_client_is_on_the_front_of_rates_and_sums():
    spent = Spent(np.array([1.0, 0.5, 0.5, 0.2, 0.1]), np.array([2, 9, 3, 9, 60]))
    assert spent.front() == [(1.0, 2), (0.5, 9), (0.1, 60)]
    each = spent.each(1.5, 1e-5)
    assert each.tolist() == [
        compute_epsilon([Mechanism(1.5, rate, times)], 1e-5)
        for rate, times in zip(spent.rates, spent.times.tolist(), strict=True)
    ]
    assert spent.worst(1.5, 1e-5) == each.max()


def test_a_given_noise_is_taken_and_an_epsilon_searched_for_over_all_clients():
    assert resolve_noise_multiplier(experiment_with(("privacy.noise_multiplier", 1.25)), None) == 1.25
    experiment = experiment_with(("privacy.epsilon", 5.0))
    noise = resolve_noise_multiplier(experiment, SIZES)
    spent = Spent(rates_of(experiment, SIZES), Work(experiment, 5).until(6))
    assert 5 * (1 - 1e-3) <= spent.worst(noise, 1e-5) <= 5
    assert resolve_noise_multiplier(experiment, SIZES, remote=True) > noise
    by_client = experiment_with(("privacy.unit", "client"), ("privacy.epsilon", 5.0))
    assert resolve_noise_multiplier(by_client, None) == resolve_noise_multiplier(by_client, SIZES)


def test_an_epsilon_without_sizes_says_what_to_set():
    with pytest.raises(InputError, match=r"privacy.epsilon: .* not known; give privacy.noise_multiplier"):
        resolve_noise_multiplier(experiment_with(("privacy.epsilon", 5.0)), None)


def test_an_account_grows_with_the_rounds_and_a_budget_ends_it_before_it_is_exceeded():
    experiment = experiment_with(("privacy.noise_multiplier", 2.0), ("privacy.budget", 4.0))
    account = SimulatedAccount(experiment, SIZES)
    spent = [account.epsilon(rounds) for rounds in range(7)]
    assert spent[0] == 0
    assert spent == sorted(spent)
    assert spent[-1] > 4
    last = next(rounds for rounds in range(7) if not account.allows(rounds))
    assert spent[last] <= 4 < spent[last + 1]
    line = account.describe_end(last, 6)
    assert line == (
        f"privacy.budget=4 ended the run after round {last} of 6: epsilon is {spent[last]:.4g}, and would be "
        f"{spent[last + 1]:.4g} after one more round (delta 1e-05)"
    )
    assert account.describe_end(0, 6) == "", "the run goes on"


def test_a_server_counts_every_request_and_leaves_room_for_repeated_ones():
    experiment = experiment_with(
        ("privacy.noise_multiplier", 2.0), ("privacy.budget", 100.0), ("federation.retries", 1)
    )
    asked = Counter({4: 7, 2: 1})
    account = RemoteAccount(experiment, 5, SIZES.tolist(), lambda: asked)
    assert account.spent(1).times.tolist() == [0, 0, 3, 0, 21]
    assert account.spent_with(1).times.tolist() == [6, 6, 9, 6, 27]
    unknown = RemoteAccount(experiment, 5, None, lambda: asked)
    assert unknown.epsilon(3) is None, "only the nodes know"
    assert unknown.allows(3)
    by_client = experiment_with(("privacy.unit", "client"), ("privacy.noise_multiplier", 2.0))
    of_clients = RemoteAccount(by_client, 5, None, lambda: asked)
    assert of_clients.epsilon(3) == compute_epsilon([Mechanism(2.0, 1.0, 3)], 1e-5)
    again = RemoteAccount(by_client, 5, None, lambda: asked, lambda: 5)  # two rounds were lost and done again
    assert again.epsilon(3) == compute_epsilon([Mechanism(2.0, 1.0, 5)], 1e-5)
    assert again.spent_with(3).times.tolist() == [6] * 5


def test_classes_hold_all_clients_and_tell_of_the_worst_of_each():
    sizes = np.array([10, 10, 20, 30, 50, 60, 80, 100, 200, 400])
    spent = Spent(np.minimum(1, 20 / sizes), np.arange(10, 20))
    classes = group_clients(sizes, spent, 3.0, 1e-5)
    assert sum(each.clients for each in classes) == 10
    assert len(classes) == 4
    assert [each.least for each in classes] == sorted(each.least for each in classes)
    assert max(each.epsilon for each in classes) == spent.worst(3.0, 1e-5)
    (one,) = group_clients([7, 7, 7], Spent(np.ones(3), np.array([1, 2, 3])), 3.0, 1e-5)
    assert (one.least, one.most, one.clients, one.times) == (7, 7, 3, 3)
    assert math.isfinite(one.epsilon)


def test_what_is_assumed_says_what_is_public_where():
    client = experiment_with(("privacy.unit", "client"), ("privacy.noise_multiplier", 2.0)).privacy
    here, there = (list_assumptions(client, remote=remote)[0] for remote in (False, True))
    assert "who took part in a round is not" in here
    assert "who takes part, are public" in there
