"""The job in this package: Local AdamW in the simulation, with RANKS ranks."""

import os

from job import BATCH, CLIENTS, EACH, LR, STEPS, WEIGHT_DECAY, Stopwatch, arguments, data, model_of

watch = Stopwatch()
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: E402

from fedadamw.algorithms.local_adamw import LocalAdamW  # noqa: E402
from fedadamw.data.partition import Partition  # noqa: E402
from fedadamw.engine.ranks import Alone, current_team  # noqa: E402
from fedadamw.engine.simulate import Simulation  # noqa: E402
from fedadamw.prepare.malloc import keep_freed_memory  # noqa: E402
from fedadamw.settings.training import TrainingSettings  # noqa: E402
from fedadamw.task import Batch, Evaluation  # noqa: E402

MICRO_BATCH = {"vit": 13}  # the same step in parts that fit the processor's cache, with less memory


class Job:
    """The job's data as a task; nothing is held out."""

    held_out, resident = 1, True

    def __init__(self, ranks: Alone) -> None:
        self.images, self.labels = ranks.share_tensors(data)

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Samples have no random augmentation."""
        return torch.zeros(count, 0)

    def batch(self, samples: torch.Tensor, drawn: torch.Tensor) -> Batch:
        """Images and labels."""
        return self.images[samples], self.labels[samples]

    def losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The cross-entropy of each sample."""
        images, labels = batch
        return F.cross_entropy(model(images), labels, reduction="none")

    def outputs(self, model: torch.nn.Module, start: int, stop: int) -> torch.Tensor:
        """No outputs: nothing is held out."""
        return torch.zeros(1, 1)

    def score(self, outputs: torch.Tensor) -> Evaluation:
        """An empty evaluation."""
        return Evaluation(0.0, {})


def main() -> None:
    name, rounds, sampled = arguments()
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    clients = Partition(np.arange(CLIENTS * EACH), np.arange(EACH, CLIENTS * EACH + 1, EACH))
    training = TrainingSettings(
        rounds=rounds,
        clients_per_round=sampled,
        steps=STEPS,
        batch_size=BATCH,
        lr=LR,
        schedule="constant",
        clip=None,
        evaluate_every=rounds,
        micro_batch=MICRO_BATCH.get(name),
        channels_last=name == "cnn",
        precision=os.environ.get("PRECISION", "float32"),
    )
    algorithm = LocalAdamW(weight_decay=WEIGHT_DECAY)
    ranks = current_team(torch.device("cpu"))
    keep_freed_memory()
    for record in Simulation.in_process(model_of(name), algorithm, Job(ranks), clients, training, ranks=ranks).rounds():
        watch.round(record.train_loss)
    if ranks.rank == 0:
        watch.report()


if __name__ == "__main__":
    RANKS = int(os.environ.get("RANKS", "1"))
    if RANKS == 1:
        main()
    else:  # torchrun as a function, which imports torch once for all ranks
        once = LaunchConfig(1, 1, RANKS, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork")
        elastic_launch(once, main)()
