"""Rounds over a network."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FederationSettings(BaseModel):
    """Rounds over a network; the simulator does not look at it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quorum: int | None = Field(
        default=None, ge=1, description="least answers of a round that counts; half of clients_per_round where not set"
    )
    over_selection: float = Field(
        default=0.0, ge=0, le=4, description="ask so many more clients, as a share; the first answers count"
    )
    deadline_s: float = Field(default=600.0, gt=0, description="seconds a round waits for answers")
    wait_s: float = Field(
        default=600.0, ge=0, description="seconds to wait for nodes, or to ask again, before a run without quorum stops"
    )
    wait_for: int | None = Field(
        default=None, ge=1, description="clients to wait for before the first round; partition.clients where not set"
    )
    retries: int = Field(default=1, ge=0, description="times a client whose work failed is asked again in its round")
    max_norm: float | None = Field(default=None, gt=0, description="longest update (l2) that counts")
    norm_factor: float | None = Field(
        default=10.0, gt=1, description="longest update that counts, in medians of the last rounds; null: any"
    )
    norm_action: Literal["reject", "clip"] = Field(default="reject", description="what is done with longer ones")
    max_samples: int = Field(
        default=10**7, ge=1, description="most samples that a node with its own data may say it has"
    )
    reuse: bool = Field(
        default=True, description="send clients that have the last round's state what has changed, where that is less"
    )
    lost_memory: Literal["refuse", "fresh"] = Field(
        default="refuse",
        description="a client whose memory of the run is lost: its answers do not count, or it begins with a fresh one",
    )
    sample_counts: bool = Field(
        default=True, description="nodes tell how many samples they hold; false needs training.weighting=uniform"
    )

    def quorum_of(self, clients_per_round: int) -> int:
        """The least answers of a round."""
        return min(self.quorum or math.ceil(clients_per_round / 2), clients_per_round)

    def asked_of(self, clients_per_round: int) -> int:
        """How many clients a round asks."""
        return math.ceil(clients_per_round * (1 + self.over_selection))
