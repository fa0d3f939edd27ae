"""The section `training`: rounds, local steps, learning rate, uploads and evaluation."""

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fedadamw.settings.section import Section
from fedadamw.validation import InputError


class OuterSettings(Section):
    """The server's step: SGD along minus the clients' mean change, with momentum."""

    lr: float = Field(
        default=0.7, gt=0, allow_inf_nan=False, description="Learning rate of the server's step. 1: the clients' mean."
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Decay rate of the server's momentum over the rounds. 0: none."
    )
    nesterov: bool = Field(
        default=True, description="Look ahead along the momentum, as torch.optim.SGD does. False: plain momentum."
    )


class TrainingSettings(Section):
    """Rounds, local steps, learning rate, uploads and evaluation."""

    rounds: int = Field(default=100, ge=1, description="Communication rounds, R.")
    clients_per_round: int = Field(
        default=10,
        ge=1,
        description="Clients sampled in each round, S, at most partition.clients. More clients lower the variance of "
        "the mean and cost proportionally more time.",
    )
    steps: int | None = Field(
        default=None, ge=1, description="Local steps of a client in a round, K. Give either steps or epochs."
    )
    epochs: int | None = Field(
        default=None, ge=1, description="Local passes over a client's samples in a round, instead of steps."
    )
    batch_size: int = Field(
        default=50, ge=1, description="Samples in a local step. A client with fewer samples uses all of them."
    )
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="Samples of a local step that go through the model at once; gradients are accumulated. Null: all. "
        "Lower it if memory is full.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep only the inputs of a model's layers and compute the rest again in backward: a fraction of "
        "the memory for the time of one more forward pass, with the same numbers. Set it for large models and long "
        "texts.",
    )
    group_by_length: bool = Field(
        default=False,
        description="For texts: put a client's texts of similar length into the same batch. Less padding, so faster.",
    )
    lr: float = Field(
        default=3e-4, gt=0, description="Peak learning rate of the clients. Tune it first: `fedadamw tune --only lr`."
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate over the rounds: cosine falls to 0, constant stays."
    )
    warmup_rounds: int = Field(
        default=0, ge=0, description="Rounds in which the learning rate rises linearly first; less than rounds."
    )
    clip: float | None = Field(
        default=10.0, gt=0, description="Global L2 norm that gradients are clipped to. Null: no clipping."
    )
    precision: Literal["float32", "bf16"] = Field(
        default="float32",
        description="bf16 runs forward and backward in bfloat16 autocast; models and states stay float32. Set it on "
        "hardware with bfloat16.",
    )
    channels_last: bool = Field(
        default=False,
        description="On a CPU: keep a pixel's channels together in memory. Faster for convolutions and pooling.",
    )
    weighting: Literal["uniform", "samples"] = Field(
        default="uniform", description="Weights of the clients' mean: equal, or by their number of samples."
    )
    upload: Literal["float32", "bfloat16", "int8", "top-k"] = Field(
        default="float32",
        description="Encoding of the clients' updates: 4, 2 or 1 bytes a number, or only the largest numbers. int8 and "
        "top-k use error feedback.",
    )
    keep: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="For upload=top-k: share of an update's numbers to send, above 0, at most 1.",
    )
    mean: Literal["weighted", "median", "trimmed-mean", "krum"] = Field(
        default="weighted",
        description="How uploads are averaged. median, trimmed-mean and krum tolerate malicious clients.",
    )
    byzantine: int = Field(
        default=1,
        ge=0,
        description="For trimmed-mean and krum: malicious clients to tolerate in a round, f. trimmed-mean needs "
        "2 f + 1 clients in a round and krum 2 f + 3.",
    )
    normalize: bool = Field(
        default=False,
        description="Divide each client's update by its number of local steps and multiply their mean by the mean "
        "number (FedNova, arXiv 2007.07481), so that clients with more steps do not pull harder. Set it if numbers of "
        "steps are unequal.",
    )
    aggregation: Literal["synchronous", "buffered"] = Field(
        default="synchronous",
        description="When the server moves. synchronous: after all clients of a round. buffered: after any "
        "training.buffer updates, while other clients go on from older models (FedBuff, arXiv 2106.06639); a round is "
        "then a version.",
    )
    buffer: int | None = Field(
        default=None, ge=1, description="For buffered: updates that make a version, M. Null: clients_per_round."
    )
    concurrency: int | None = Field(
        default=None, ge=1, description="For buffered: clients that train at any time. Null: clients_per_round."
    )
    max_staleness: int | None = Field(
        default=None,
        ge=0,
        description="For buffered: versions that may have passed since an update's model; older updates are dropped. "
        "Null: none are.",
    )
    staleness: Literal["root", "none"] = Field(
        default="root",
        description="For buffered: weight of an update whose model is tau versions old. root: 1/sqrt(1 + tau). "
        "none: 1.",
    )
    outer: OuterSettings | None = Field(
        default=None,
        description="The server's step, SGD with momentum along minus the clients' mean change (DiLoCo's outer step). "
        "Null: the server adds that mean. Set it around any algorithm whose server does so.",
    )
    diagnostics: bool = Field(
        default=False,
        description="Record second moments and how well they predict gradients, client drift and alignment, "
        "in every round. Costs time.",
    )
    evaluate_batch: int | None = Field(
        default=None,
        ge=1,
        description="Held-out samples that go through the model at once. Null: micro_batch, up to a limit: 500 images; "
        "100 texts; for a language model 20 texts and at most batch_size. They take less memory than in training.",
    )
    evaluate_every: int = Field(
        default=1, ge=1, description="Rounds between evaluations. The last round is always evaluated."
    )
    client_evaluation: int = Field(
        default=0,
        ge=0,
        description="Rounds between evaluations of the global model on each client's own held-out samples "
        "(partition.held_out); the last round is evaluated too. 0: none.",
    )
    evaluate_clients: int | None = Field(
        default=None,
        ge=1,
        description="For client_evaluation: clients that are evaluated, drawn once for the run. Null: all that have "
        "held-out samples.",
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _read_alias(cls, value: object) -> object:
        return "bf16" if value == "bfloat16" else value

    @model_validator(mode="after")
    def _check_together(self) -> "TrainingSettings":
        if (self.steps is None) == (self.epochs is None):
            raise InputError("training: give one of steps and epochs")
        if self.warmup_rounds >= self.rounds:
            raise InputError(f"training.warmup_rounds={self.warmup_rounds} must be less than rounds={self.rounds}")
        return self

    @property
    def buffered(self) -> bool:
        """Whether the server moves whenever a buffer of updates is full."""
        return self.aggregation == "buffered"

    @property
    def updates_per_version(self) -> int:
        """How many updates fill the buffer, M."""
        return self.buffer or self.clients_per_round

    @property
    def clients_at_once(self) -> int:
        """How many clients train at any time, with buffered aggregation."""
        return self.concurrency or self.clients_per_round

    def evaluation_batch(self, limit: int) -> int:
        """Held-out samples that go through the model at once; at most `limit` if evaluate_batch is not set."""
        return self.evaluate_batch or min(limit, self.micro_batch or limit)

    def samples_per_round(self, samples: int, steps: int | None = None) -> int:
        """How many samples a client with `samples` trains on in a round, repetitions included.

        steps: its local steps, if they are not those of these settings.
        """
        steps = steps or self.steps
        return steps * min(self.batch_size, samples) if steps else (self.epochs or 1) * samples

    def steps_per_round(self, samples: int, steps: int | None = None) -> int:
        """How many local steps a client with `samples` takes in a round; steps: see `samples_per_round`.

        With epochs it is one an epoch fewer where BatchNorm has a last batch of one sample merged into another.
        """
        return steps or self.steps or (self.epochs or 1) * -(-samples // self.batch_size)

    def lr_at(self, round_: int) -> float:
        """The learning rate of round `round_` (from 0); never 0."""
        if round_ < self.warmup_rounds:
            return self.lr * (round_ + 1) / self.warmup_rounds
        if self.schedule == "constant":
            return self.lr
        progress = (round_ - self.warmup_rounds) / (self.rounds - self.warmup_rounds)
        return self.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def evaluates(self, round_: int) -> bool:
        """Whether round `round_` (from 0) ends with an evaluation."""
        return (round_ + 1) % self.evaluate_every == 0 or round_ + 1 == self.rounds

    def evaluates_clients(self, round_: int) -> bool:
        """Whether round `round_` (from 0) ends with an evaluation of the clients."""
        every = self.client_evaluation
        return every > 0 and ((round_ + 1) % every == 0 or round_ + 1 == self.rounds)
