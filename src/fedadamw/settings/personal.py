"""The section `personal`: parameters that stay with each client, and tuning of the final model for each."""

from pydantic import Field, field_validator, model_validator

from fedadamw.settings.section import Section
from fedadamw.validation import check, shorten


class PersonalSettings(Section):
    """Parameters that each client keeps for itself: a head (FedPer), norms (FedBN), adapters' B (FedSA-LoRA)."""

    parameters: tuple[str, ...] = Field(
        default=(),
        description="Patterns of the names of parameters that stay with each client, and are not sent: a list such as "
        "[classifier.*] or ['*norm*']. Running statistics of their layers stay, too. `fedadamw blocks MODEL` has "
        "the names.",
    )
    finetune: int = Field(
        default=0,
        ge=0,
        description="Local steps that tune the final model for each client after the last round; it is scored before "
        "and after. 0: none.",
    )

    @field_validator("parameters", mode="before")
    @classmethod
    def _check_patterns(cls, value: object) -> object:
        valid = isinstance(value, list | tuple) and all(isinstance(part, str) and part for part in value)
        check(valid, f"personal.parameters={shorten(value)}: give patterns in a list, such as [classifier.*]")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> "PersonalSettings":
        check(bool(self.parameters) or self.finetune > 0, "personal: give parameters, finetune, or both")
        return self
