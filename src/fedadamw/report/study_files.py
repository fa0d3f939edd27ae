"""Types of what a study folder holds: results.json of `compare` and `ablate`, trials.json of `tune`."""

from typing import Any, Literal, TypedDict

from fedadamw.report.metrics import Score

Numbers = list[float | None]  # one per evaluated round; None if it was not finite
Row = dict[str, str | float]  # a point of a chart


ClientColumn = Literal["clients_mean", "clients_weighted", "clients_std", "clients_worst_decile"]


class Interval(TypedDict):
    """An interval of a mean over seeds."""

    low: float
    high: float
    method: str  # t or bootstrap


class ClientColumns(TypedDict):
    """Scores over a run's clients, as columns of one number per round in which they were evaluated."""

    round: list[int]
    sent_bytes: list[int]
    clients_mean: Numbers
    clients_weighted: Numbers
    clients_std: Numbers
    clients_worst_decile: Numbers
    clients_tuned: Numbers  # mean after personal.finetune, in the last round


class ClientTimes(ClientColumns, total=False):
    """These columns of a run with a virtual clock."""

    virtual_s: list[float]


class _RunResult(TypedDict):
    name: str
    variant: str  # the label as text
    label: dict[str, str]  # `algorithm` and each varied setting -> its value as text
    seed: int
    commit: str | None
    settings: dict[str, Any]  # the learning rate and the algorithm's own settings
    up_bytes_a_client: int
    down_bytes_a_client: int
    rejected: int
    wall_s: float
    round: list[int]
    score: Numbers
    test_loss: Numbers
    train_loss: Numbers
    sent_bytes: list[int]  # by all clients, so far
    diagnostics: list[dict[str, Any]]  # engine.diagnostics.Numbers and their `round`


class RunResult(_RunResult, total=False):
    """One finished run: its settings, and its records as columns of one number per evaluated round."""

    epsilon: float | None  # with privacy: the largest of a client after the last round; None if it is infinite
    clients: ClientTimes  # of a run whose clients were evaluated
    virtual_s: list[float]  # with a virtual clock: when each evaluated round ended


class _Summary(TypedDict):
    variant: str
    label: dict[str, str]
    settings: dict[str, Any]
    seeds: int
    score: float | None  # mean after the last round; None if that of a seed was not finite
    score_sd: float | None  # None also for one seed
    score_interval: Interval | None  # 95%, of the mean; None also for one seed
    train_loss: float | None
    rounds_to_target: int | None  # None if not reached
    bytes_to_target: int | None
    up_bytes_a_client: int
    wall_s: float


class Summary(_Summary, total=False):
    """One variant over its seeds; what is of clients: means over its seeds after the last round."""

    epsilon: float | None  # with privacy: the largest of its seeds; None if it is infinite
    clients_mean: float | None
    clients_mean_interval: Interval | None
    clients_weighted: float | None
    clients_std: float | None
    clients_worst_decile: float | None
    clients_worst_decile_interval: Interval | None
    clients_tuned: float | None  # mean after personal.finetune
    clients_tuned_interval: Interval | None
    virtual_s: float  # with a virtual clock: when the last round ended
    virtual_s_to_target: float | None  # mean of the seeds' first evaluations; None if one of them did not reach it
    virtual_s_to_target_interval: Interval | None


class Comparison(TypedDict):
    """The best variant compared with another one, by seed; see report.intervals.PairedTest."""

    best: str
    variant: str
    seeds: int  # that both have
    difference: float  # mean of the best's scores less the other's
    interval: Interval | None  # 95%, of the difference
    p: float | None  # of the paired t-test
    p_holm: float | None  # corrected for the number of comparisons
    p_wilcoxon: float | None  # of the signed-rank test, from ten seeds on
    seeds_needed: int | None  # to find a difference of this size: power 80%, two-sided 5%


class Missing(TypedDict):
    """A run without a final score."""

    variant: str
    seed: int
    error: str


class Owners(TypedDict):
    """A value of a setting, and the variants that have it."""

    value: Any
    variants: list[str]


class _Results(TypedDict):
    format: int
    recipe: str
    commit: str | None
    device: str | None
    versions: dict[str, str | None]
    metric: str | None
    target: float | None  # the score that rounds_to_target and bytes_to_target are counted to
    settings: dict[str, tuple[bool, Any]]  # (False, the value) if all runs agree, else (True, the values)
    whose: dict[str, list[Owners]]  # of each setting in which variants differ
    summary: list[Summary]
    comparisons: list[Comparison]
    runs: list[RunResult]
    missing: list[Missing]


class Results(_Results, total=False):
    """results.json: everything that the tables, charts and page of a study show."""

    score: Score  # what `score`, `summary` and `comparisons` are of; test in older files
    client_comparisons: list[Comparison]  # by clients_mean, where runs have it and it is not the score
    until_s: float  # of a study seen at a virtual time, that time; not in the file


class Trial(TypedDict):
    """One value of a tuned setting."""

    value: float
    score: float | None  # held-out; None if it failed
    state: str  # complete, pruned or failed


class Stage(TypedDict):
    """An entry of trials.json: the search for one setting of one algorithm."""

    algorithm: str
    setting: str
    metric: str
    by: Score  # which score of the trials it is
    best: float
    at_edge: bool
    trials: list[Trial]
