"""The networks of the published jobs, layer by layer as their authors have them."""

from torch import Tensor, nn


def pfl_cnn() -> nn.Module:
    """`simple_cnn` of pfl-research (benchmarks/model/pytorch/cnn.py) for CIFAR-10: 1,626,442 parameters.

    Takes (n, 3, 32, 32). Weights are Xavier-uniform, biases torch's default.
    """
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return model


class FluteCNN(nn.Module):
    """`CNN_DropOut` of FLUTE (experiments/cv_cnn_femnist/model.py, from FedML) for 62 classes: 1,206,590 parameters.

    Takes (n, 1, 28, 28). Weights are torch's default.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(
            nn.Dropout(0.25), nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 62)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 62)."""
        logits: Tensor = self.head(self.features(x))
        return logits
