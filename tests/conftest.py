"""What the tests share: small real problems, the data beside the checkout, the command."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedadamw.algorithms.registry import ALGORITHMS
from fedadamw.cli import main
from fedadamw.task import Evaluation

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: they share two cores


# the steps are small, so that there is something to kill in every phase of a round
SHORT = ("-s", "training.rounds=12", "-s", "training.steps=2", "-s", "threads=1", "-s", "checkpoint_every=3")


class SmallTransformer(nn.Module):
    """One attention block with heads, an MLP and a head: every class of the block table, in 163 numbers."""

    def __init__(self, width: int = 4, heads: int = 2, inputs: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.attention = nn.MultiheadAttention(
            width, heads, bias=False, batch_first=True
        )  # a key has no use for a bias
        self.mlp = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.classifier(self.norm(torch.tanh(self.mlp(y))).mean(1))


class SequenceTask:
    """Classification of short random sequences, in float64; classes differ between clients."""

    def __init__(self, samples: int = 200, classes: int = 3, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(samples) % classes
        centers = torch.randn(classes, 1, 3, generator=g, dtype=torch.float64)
        self.inputs = centers[self.labels] + torch.randn(samples, 5, 3, generator=g, dtype=torch.float64)

    resident = True

    def draw(self, count, generator):
        return torch.zeros(count, 0)

    def batch(self, samples, drawn):
        return self.inputs[samples], self.labels[samples]

    def losses(self, model, batch):
        inputs, labels = batch
        return F.cross_entropy(model(inputs), labels, reduction="none")

    held_out = 200

    def outputs(self, model, start, stop):
        logits, labels = model(self.inputs[start:stop]), self.labels[start:stop]
        losses = F.cross_entropy(logits, labels, reduction="none")
        return torch.stack([losses, (logits.argmax(-1) == labels).double()], -1)

    def score(self, outputs):
        loss, accuracy = outputs.mean(0).tolist()
        return Evaluation(loss, {"accuracy": accuracy})


def batch_of(task, samples: np.ndarray, seed: int = 0):
    """The batch of these samples, augmented as a generator with this seed draws."""
    return task.batch(torch.from_numpy(samples), task.draw(len(samples), torch.Generator().manual_seed(seed)))


def attention_model(seed: int = 0) -> SmallTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallTransformer().double()


def unequal_clients(task: SequenceTask, sizes=(5, 40, 13, 60, 22)) -> list[np.ndarray]:
    """Clients of unequal size, sorted by class so that they differ."""
    order = np.argsort(task.labels.numpy(), kind="stable")
    ends = np.cumsum(sizes)
    return [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def need(path: Path) -> Path:
    """`path` of the data beside the checkout, or a skip that says so."""
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT.parent)} is not beside this checkout")
    return path


def command(*arguments: str, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess:
    """`fedadamw` with these arguments, as a user would type it."""
    return subprocess.run(
        [sys.executable, "-m", "fedadamw", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def typed(monkeypatch, capsys) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """`command` in this process, for what is refused: it saves a start of seconds."""
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets these for a process of its own
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fedadamw", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, terminate)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make): the folder that make(folder) filled, in the first of the parallel test processes that asks."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / f"once-{name}", base / f"once-{name}.done"
        with open(base / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def finished(once) -> Path:
    """A whole run of digits, never interrupted."""

    def make(folder: Path) -> None:
        done = command("run", "digits", *SHORT, "--out", str(folder / "run"))
        assert done.returncode == 0, done.stderr

    return once("run", make) / "run"


@pytest.fixture
def task() -> SequenceTask:
    return SequenceTask()


@pytest.fixture
def everywhere(monkeypatch) -> None:
    """The registry has what cases.EVERYWHERE names."""
    from cases import register

    register(lambda name, algorithm: monkeypatch.setitem(ALGORITHMS, name, algorithm))


@pytest.fixture
def one_thread():
    """torch with as many threads after the test as before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
