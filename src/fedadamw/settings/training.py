"""How the rounds of a run are trained: the settings that every engine obeys."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedadamw.validation import InputError


class TrainingSettings(BaseModel):
    """Rounds, local work and learning rate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(default=100, ge=1, description="rounds, R")
    clients_per_round: int = Field(default=10, ge=1, description="clients sampled a round, S")
    steps: int | None = Field(default=None, ge=1, description="local steps a round, K; or give epochs")
    epochs: int | None = Field(default=None, ge=1, description="local passes a round, in place of steps")
    batch_size: int = Field(default=50, ge=1, description="samples a local step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="samples of a local step that go through the model at once: less memory"
    )
    group_by_length: bool = Field(
        default=False, description="put a client's texts of a round into batches of much the same length: less padding"
    )
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate of the clients")
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="over rounds, cosine to 0")
    warmup_rounds: int = Field(default=0, ge=0, description="rounds of linear warm-up before the schedule")
    clip: float | None = Field(default=10.0, gt=0, description="global norm that gradients are clipped to")
    precision: Literal["float32", "bf16"] = Field(
        default="float32", description="bf16: forward and backward in bfloat16 where that is safe; float32 models"
    )
    channels_last: bool = Field(
        default=False,
        description="on a CPU, image batches with a pixel's channels together: for convolutions and pooling",
    )
    weighting: Literal["uniform", "samples"] = Field(default="uniform", description="weights of the clients' mean")
    upload: Literal["float32", "bfloat16", "int8", "top-k"] = Field(
        default="float32", description="how clients' changes travel: 4, 2 or 1 bytes a number, or the largest alone"
    )
    keep: float = Field(default=0.05, gt=0, le=1, description="share of a change's numbers that top-k sends")
    mean: Literal["weighted", "median", "trimmed-mean", "krum"] = Field(
        default="weighted", description="of what clients send; the others hold against some that lie, see byzantine"
    )
    byzantine: int = Field(
        default=1, ge=0, description="lying clients a round that a trimmed mean (at each end) or Krum leaves out"
    )
    diagnostics: bool = Field(default=False, description="record each round's second moments, drift and alignment")
    evaluate_batch: int | None = Field(
        default=None,
        ge=1,
        description="held-out samples that go through the model at once; unset, micro_batch up to a limit. "
        "Images: at most 500. Texts: at most 100. A language model: at most 20 texts, and at most batch_size",
    )
    evaluate_every: int = Field(default=1, ge=1, description="rounds between evaluations; the last is evaluated")

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "TrainingSettings":
        if (self.steps is None) == (self.epochs is None):
            raise InputError("training: give one of steps and epochs")
        if self.warmup_rounds >= self.rounds:
            raise InputError(f"training.warmup_rounds={self.warmup_rounds} must be less than rounds={self.rounds}")
        return self

    def evaluated_at_once(self, most: int) -> int:
        """How many held-out samples go through the model at once; at most `most` where that is not set."""
        return self.evaluate_batch or min(most, self.micro_batch or most)

    def work(self, samples: int) -> int:
        """How many samples a client that has `samples` trains on in a round."""
        return self.steps * min(self.batch_size, samples) if self.steps else (self.epochs or 1) * samples

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
