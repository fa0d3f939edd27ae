"""The job in pfl: its simulated backend, its federated averaging and its PyTorch model."""

import os

from job import BATCH, LR, WEIGHT_DECAY, Stopwatch, arguments, batches_of, clients_of, data, model_of

watch = Stopwatch()
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByUser  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402

torch.set_num_threads(int(os.environ.get("THREADS", "1")))
name, rounds, sampled = arguments()
images, labels = data()
losses: list[torch.Tensor] = []


class Net(torch.nn.Module):
    """The job's model with the methods that pfl needs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = model_of(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(self.net(x), y)
        losses.append(loss.detach().clone())
        return loss

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(F.cross_entropy(self.net(x), y).item() * len(y), len(y))}


class Clock(TrainingProcessCallback):
    """Notes the end of each round."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        watch.round(float(torch.stack(losses).mean()))
        losses.clear()
        return False, Metrics()


turns = ((round_, client) for round_ in range(rounds) for client in clients_of(round_, sampled))


def client_data(turn: tuple[int, int]) -> Dataset:
    """A client's samples in the order of its batches this round."""
    order = torch.from_numpy(batches_of(*turn).reshape(-1))
    return Dataset([images[order], labels[order]], user_id=str(turn[1]))


def adamw(parameters, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)


net = Net()
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=rounds,
        evaluation_frequency=rounds + 1,
        train_cohort_size=sampled,
        val_cohort_size=None,
    ),
    backend=SimulatedBackend(
        training_data=FederatedDataset(client_data, lambda: next(turns)),
        val_data=None,
        postprocessors=[WeightByUser()],
    ),
    model=PyTorchModel(net, adamw, torch.optim.SGD(net.parameters(), 1.0)),
    model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=LR, local_batch_size=BATCH),
    model_eval_params=NNEvalHyperParams(local_batch_size=None),
    callbacks=[Clock()],
)
watch.report()
