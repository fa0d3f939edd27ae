"""The section `federation`: rounds over a network, with Flower."""

import math
from typing import Literal

from pydantic import Field

from fedadamw.settings.section import Section


class FederationSettings(Section):
    """Rounds over a network, with Flower; of it devices take quorum, over_selection, deadline_s and wait_s."""

    quorum: int | None = Field(
        default=None,
        ge=1,
        description="Fewest answers with which a round counts. Null: half of clients_per_round, rounded up. With "
        "devices it acts in the simulator's synchronous rounds, too.",
    )
    over_selection: float = Field(
        default=0.0,
        ge=0,
        le=4,
        description="Share of clients to ask in addition, from 0 to 4 (0.3: 13 for 10); the first answers count. "
        "Raise it if some nodes are slow. With devices it acts in the simulator's synchronous rounds, "
        "too.",
    )
    deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="Seconds that a round waits for answers. Must cover a client's local steps. With devices they are "
        "virtual seconds of the simulator's synchronous rounds.",
    )
    wait_s: float = Field(
        default=600.0,
        ge=0,
        description="Seconds to wait for nodes, or to ask other clients, before a run without a quorum stops. With "
        "devices they are virtual seconds of the simulator's synchronous rounds.",
    )
    wait_for: int | None = Field(
        default=None,
        ge=1,
        description="Clients to wait for before the first round, wait_s at most. Null: partition.clients.",
    )
    retries: int = Field(
        default=1,
        ge=0,
        description="How often a client that failed, or was away and is back, is asked again in a round.",
    )
    max_norm: float | None = Field(
        default=None,
        gt=0,
        description="Largest L2 norm of an update. Null: no fixed limit. Set it if you do not know the nodes.",
    )
    norm_factor: float | None = Field(
        default=10.0,
        gt=1,
        description="Largest L2 norm of an update, as a multiple, above 1, of the median of the last five rounds. "
        "Null: no such limit.",
    )
    norm_action: Literal["reject", "clip"] = Field(
        default="reject",
        description="What happens to an update beyond these limits: it is rejected, or clipped to the limit.",
    )
    max_samples: int = Field(default=10**7, ge=1, description="Most samples that a node with its own data may claim.")
    reuse: bool = Field(
        default=True,
        description="Send only the change to clients that have the last round's state, if that is smaller.",
    )
    lost_memory: Literal["refuse", "fresh"] = Field(
        default="refuse",
        description="If a client has lost its memory of the run (SCAFFOLD, error feedback): refuse its answers, or let "
        "it start with a fresh one.",
    )
    sample_counts: bool = Field(
        default=True,
        description="Nodes tell the server how many samples they hold. false keeps that private and needs "
        "training.weighting=uniform.",
    )

    evaluate_s: float = Field(
        default=300.0,
        gt=0,
        description="Seconds that the server waits for nodes' scores (training.client_evaluation); later ones are left "
        "out.",
    )
    evaluate_quorum: int | None = Field(
        default=None,
        ge=1,
        description="Fewest nodes whose scores are recorded; with fewer the run continues without. Null: half of "
        "those that are asked, rounded up.",
    )
    evaluate_factor: float | None = Field(
        default=10.0,
        ge=1,
        description="Most samples that a node with data of its own counts for in the scores of all nodes together, as "
        "a multiple of the median. Null: no limit.",
    )

    def evaluate_quorum_of(self, asked: int) -> int:
        """The fewest nodes of `asked` whose scores are recorded."""
        return max(1, min(self.evaluate_quorum or math.ceil(asked / 2), asked))

    def quorum_of(self, clients_per_round: int) -> int:
        """The fewest answers with which a round of `clients_per_round` counts."""
        return min(self.quorum or math.ceil(clients_per_round / 2), clients_per_round)

    def clients_to_ask(self, clients_per_round: int) -> int:
        """How many clients are asked for a round of `clients_per_round`, over-selection included."""
        return math.ceil(clients_per_round * (1 + self.over_selection))
