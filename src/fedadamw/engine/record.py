"""What a run says of each round."""

from dataclasses import dataclass

from fedadamw.engine.diagnostics import Numbers


class DivergedError(RuntimeError):
    """Every client of a round sent numbers that are not finite."""


@dataclass(frozen=True)
class Record:
    """One round, as it is logged; bytes are of all clients of the round, counted from the tensors."""

    round: int  # from 1
    lr: float
    train_loss: float
    test_loss: float | None  # None in rounds without an evaluation
    test_metrics: dict[str, float] | None  # by name, the main one first
    clients: int  # that answered
    rejected: int  # whose numbers were not finite
    up_bytes: int
    down_bytes: int
    wall_s: float
    diagnostics: Numbers | None = None  # where training.diagnostics asks for them
    federation: dict[str, int] | None = None  # where clients are elsewhere: what came of those asked, counted
