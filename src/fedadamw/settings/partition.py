"""The section `partition`: which client holds which samples."""

from typing import Literal

from pydantic import Field

from fedadamw.settings.section import Section


class PartitionSettings(Section):
    """Which client holds which samples."""

    kind: Literal["mix", "dirichlet", "iid", "classes", "column", "nodes", "python"] = Field(
        default="mix",
        description="How samples are given to clients. mix: as in the paper, equal sizes, each client's class mix "
        "drawn from Dir(concentration). dirichlet: each class is divided by Dir(concentration), sizes differ. iid: at "
        "random, equal sizes. classes: a few classes for each client. column: by a column of the data. nodes: each "
        "Flower node has its own data. python: as `fedadamw.simulate` was given.",
    )
    clients: int = Field(
        default=100, ge=1, description="Clients, N. Not used with kind=column: there each value is a client."
    )
    concentration: float = Field(
        default=0.3,
        gt=0,
        le=1e6,
        description="For mix and dirichlet: concentration of the Dirichlet distribution, above 0. Smaller values give "
        "clients fewer classes, which is harder; the paper uses 0.1 and 0.6.",
    )
    minimum: int = Field(
        default=1,
        ge=1,
        description="For dirichlet: least samples of a client. For column: a client with fewer is left out.",
    )
    classes_per_client: int = Field(default=2, ge=1, description="For classes: classes of each client.")
    column: str | None = Field(
        default=None, description="For column: the data's column that names the client, such as a writer or a user."
    )

    held_out: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each client's samples that it holds out for its own score (training.client_evaluation): "
        "they are never trained on. A client with two samples or more holds out at least one, and trains on one.",
    )

    @property
    def client_column(self) -> str | None:
        """The column that names the clients, if kind is column."""
        return self.column if self.kind == "column" else None
