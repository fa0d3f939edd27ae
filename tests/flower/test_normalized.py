"""Updates of nodes, normalised by their numbers of local steps."""

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import assert_same, changed, federated, simulated

pytestmark = pytest.mark.usefixtures("restore_threads")

UNEQUAL = [
    "training={rounds: 2, clients_per_round: 3, epochs: 1, batch_size: 20, lr: 0.001, normalize: true}",
    "partition={kind: dirichlet, clients: 3, concentration: 0.3}",
    "data.max_train=300",
]


def test_updates_are_normalised_by_the_steps_that_the_server_computes(tmp_path):
    ours, _ = federated(tmp_path, UNEQUAL)
    steps = {}
    ours.listeners.append(lambda shard, answer: steps.update({shard.client: answer.steps}))
    list(ours.rounds())
    theirs = simulated(UNEQUAL)
    list(theirs.rounds())
    assert_same(ours, theirs)
    assert steps == {i: -(-len(own) // 20) for i, own in enumerate(theirs.clients.partition)}
    assert len(set(steps.values())) > 1


@pytest.mark.parametrize("longer", [4, 12])
def test_an_update_is_not_too_long_by_its_steps_alone(longer, tmp_path):
    """A node with few samples, whose update counts for more once it is normalised, may not send one that is long."""
    sizes = [len(own) for own in simulated(UNEQUAL).clients.partition]
    smallest = sizes.index(min(sizes))
    lie = changed("up.delta", lambda delta: longer * delta)
    ours, _ = federated(tmp_path, [*UNEQUAL, "federation.retries=0"], **{f"_{smallest}": lie})
    record = ours.step()
    assert record.rejected == (longer > 10), "federation.norm_factor"
