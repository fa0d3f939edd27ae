"""Types of results.json: what the runs of a study measured."""

from typing import Any, Literal, TypedDict

Curve = Literal["score", "train_loss", "test_loss"]  # columns of a RunResult that are drawn by round


class RunResult(TypedDict):
    """One finished run. Lists from `round` to `sent_bytes` have an entry for each evaluation."""

    name: str  # of its folder
    variant: str
    label: dict[str, str]  # `algorithm` and each varied setting -> its value as text
    seed: int
    commit: str | None
    settings: dict[str, Any]  # lr and the algorithm's own
    up_bytes_a_client: int
    down_bytes_a_client: int
    rejected: int
    wall_s: float
    round: list[int]
    score: list[float | None]  # the main metric; None if it was not finite
    test_loss: list[float | None]
    train_loss: list[float | None]
    sent_bytes: list[int]  # by all clients since round 1
    diagnostics: list[dict[str, Any]]  # of each round that has them, with its number as `round`


class Summary(TypedDict):
    """One variant over its seeds: means, and the score's standard deviation, after the last round."""

    variant: str
    label: dict[str, str]
    settings: dict[str, Any]
    seeds: int
    score: float | None  # None if one seed has none
    score_sd: float | None  # None for one seed
    train_loss: float | None
    rounds_to_target: int | None  # None if the mean score never reaches the target
    bytes_to_target: int | None
    up_bytes_a_client: int
    wall_s: float


class MissingRun(TypedDict):
    """A run without a final score."""

    variant: str
    seed: int
    error: str


class Results(TypedDict):
    """A study."""

    format: int
    recipe: str
    commit: str | None  # as are device, versions and metric: distinct values joined by `and`
    device: str | None
    versions: dict[str, str | None]
    metric: str | None
    target: float | None  # score that rounds_to_target and bytes_to_target refer to
    settings: dict[str, tuple[bool, Any]]  # path -> (False, the value of all runs) or (True, the distinct values)
    summary: list[Summary]
    runs: list[RunResult]
    missing: list[MissingRun]
