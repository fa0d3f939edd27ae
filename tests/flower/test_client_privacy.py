"""Privacy of clients over a Grid: a trusted server clips and adds noise that nobody can compute again."""

import pytest
import torch

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import LIES, assert_same, federated, simulated

from fedadamw.engine.clients import QuorumError
from fedadamw.randomness import Seeded

pytestmark = pytest.mark.usefixtures("restore_threads")

ALL = "training.clients_per_round=3"
CLIENT = "privacy={unit: client, noise_multiplier: 0.05, clip: 0.2, moment_clip: 0.05}"


def test_with_seeded_noise_it_is_the_simulation_of_all_clients(tmp_path):
    settings = [ALL, CLIENT, "privacy.quantile=0.5", "training.upload=int8"]
    ours, _ = federated(tmp_path, settings, entropy=Seeded(0))
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.clip == expected.clip
        assert record.train_loss is None
    assert_same(ours, theirs)
    page = ours.clients.ledger.page
    assert (page.counted, page.past, page.samples) == ({0: 2, 1: 2, 2: 2}, [], {}), "only who took part"


def test_no_two_runs_have_the_same_noise(tmp_path):
    settings = [ALL, CLIENT, "training.rounds=1"]
    one, _ = federated(tmp_path / "one", settings)
    other, _ = federated(tmp_path / "other", settings)
    records = [one.step(), other.step()]
    moved = [sim.state.server.x - sim.workspace.y.new_tensor(0) for sim in (one, other)]
    difference = (moved[0] - moved[1]).std()
    assert float(difference) == pytest.approx(2**0.5 * 0.05 * 1.0198 * 0.2 / 3, rel=0.05), "the clients sent the same"
    assert [record.clients for record in records] == [3, 3]


def test_a_resumed_run_draws_new_noise(tmp_path):
    settings = [ALL, CLIENT]
    ours, _ = federated(tmp_path, settings)
    ours.step()
    state, saved = ours.state, ours.clients.ledger
    ours.step()
    first = ours.state.server.x
    ours.state, ours.clients.ledger = state, saved
    record = ours.step()
    assert not torch.equal(ours.state.server.x, first)
    assert record.epsilon == ours.account.epsilon(3), "both are known, so three sums count, not two"


def test_a_long_update_is_clipped_and_counts(tmp_path):
    settings = [ALL, "privacy={unit: client, noise_multiplier: 0.0, clip: 0.2}", "algorithm.name=fedavg"]
    ours, _ = federated(tmp_path, settings, _2=LIES["long"][0])
    before = ours.state.server.x
    record = ours.step()
    assert (record.clients, record.rejected) == (3, 0)
    assert float((ours.state.server.x - before).norm()) <= 0.2 * (1 + 1e-6)


def test_a_refused_upload_keeps_its_place_and_adds_nothing(tmp_path):
    settings = ["federation={retries: 0}", "training.clients_per_round=2", CLIENT]
    ours, _ = federated(tmp_path, settings, **dict.fromkeys(("_0", "_1", "_2"), LIES["nan"][0]))
    with pytest.warns(UserWarning, match="only noise"):
        record = ours.step()
    assert (record.clients, record.rejected) == (0, 2)
    assert (record.federation["asked"], record.federation["refused"]) == (2, 2), "the third is not asked instead"
    assert float(ours.state.server.t) == 3, "a round without uploads has noise"


def test_no_other_clients_upload_takes_the_place_of_one_that_fails(tmp_path):
    """One client would move the sum by its own part and by the other's."""
    federation = "federation={quorum: 2, wait_s: 3, deadline_s: 9, retries: 0}"
    ours, grid = federated(tmp_path, ["training.clients_per_round=2", CLIENT, federation])
    first, _ = sampled = ours.clients.sample(0)
    grid.workers[100 + first].answer = lambda facts, arrays: ({"error": "OSError: no disk"}, {})
    with pytest.raises(QuorumError, match="1 clients answered"):
        ours.step()
    assert ours.clients.collector.asked == set(sampled)
