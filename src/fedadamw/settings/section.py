"""The base class of every section of settings."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings that cannot change; an unknown name is an error.

    Each field has a description for users: what it does, its unit and range, what null means, when to change it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
