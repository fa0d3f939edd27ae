"""The examples run as written and learn, and other people's training loops come to the plain loop's weights."""

import importlib
import re
import subprocess
import sys

import pytest
import torch
from support.checkout import ROOT
from support.sequences import attention_model
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fedadamw

EXAMPLES = ROOT / "examples"
SCRIPTS = {"plain": 0.85, "accelerate_loop": 0.8, "lightning_module": 0.8, "trainer": 0.65}  # accuracy they must reach
LINE = re.compile(r"^round (\d+): held-out loss ([\d.]+), accuracy ([\d.]+)$", re.MULTILINE)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in [path.stem for path in EXAMPLES.glob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def fresh():
    """accelerate keeps its precision and accumulation for the process."""
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def learned(printed: str, accuracy: float) -> None:
    first, *_, last = [tuple(map(float, line)) for line in LINE.findall(printed)]
    assert first[0] == 0
    assert last[1] < 0.8 * first[1]
    assert last[2] > max(accuracy, first[2])


def test_every_example_is_short_and_named_where_one_looks():
    for page in ("README.md", "docs/other-loops.md"):
        assert all(f"examples/{name}.py" in (ROOT / page).read_text() for name in SCRIPTS)
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs_as_written_and_learns(name, tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    learned(done.stdout, SCRIPTS[name])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_trainer_example_learns_where_nothing_is_at_hand(example, fresh, monkeypatch, capsys, tmp_path):
    sentences = example("sentences")
    monkeypatch.setattr(sentences, "SST2", tmp_path / "missing")
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    example("trainer").main()
    printed = capsys.readouterr().out
    learned(printed, 0.9)
    sent, whole = re.search(r"has ([\d,]+) bytes, .* of the model's ([\d,]+)", printed).groups()
    assert int(sent.replace(",", "")) < 0.05 * int(whole.replace(",", ""))


def plain_round(model, down, loss_of, batches, *, lr, clip, accumulate=1, schedule=None):
    """An upload by hand; a step takes `accumulate` of the batches."""
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=lr, blocks=fedadamw.Blocks.of(model))
    opt.start_round(down)
    scheduler = schedule and torch.optim.lr_scheduler.LambdaLR(opt, schedule)
    for start in range(0, len(batches), accumulate):
        together = batches[start : start + accumulate]
        for batch in together:
            (loss_of(model, batch) / accumulate).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        opt.step()
        opt.zero_grad()
        if scheduler:
            scheduler.step()
    return opt.finish_round()


def same(a, b, atol: float = 1e-9) -> None:
    for field, one, other in zip(a.state._fields, a.state, b.state, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol, msg=lambda text, field=field: f"{field}: {text}")
    if isinstance(a, fedadamw.Upload):
        torch.testing.assert_close(a.lr, b.lr)


class Scored(nn.Module):
    """A model that returns its loss, as Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = attention_model()

    def forward(self, inputs, labels):
        logits = self.model(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


STEPS = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.1,
    "lr_scheduler_type": "linear",
    "train_sampling_strategy": "sequential",
}


def rows(task, start):
    return [{"inputs": task.inputs[i], "labels": int(task.labels[i])} for i in range(start, start + 32)]


def test_trainer_with_clipping_scheduler_and_accumulation_is_the_plain_loop(example, fresh, task):
    trainer = example("trainer")
    servers = []
    for theirs in (True, False):
        model = Scored()
        blocks = fedadamw.Blocks.of(model)
        server = fedadamw.Server(model, blocks=blocks)
        for _ in range(2):
            uploads = []
            for start in (0, 40):
                data, down = rows(task, start), server.broadcast()
                if theirs:
                    uploads.append(trainer.train_client(model, blocks, down, data, **STEPS))
                else:
                    parts = [slice(i, i + 4) for i in range(start, start + 32, 4)]
                    batches = [(task.inputs[part], task.labels[part]) for part in parts]
                    uploads.append(
                        plain_round(
                            model,
                            down,
                            lambda model, batch: model(*batch)["loss"],
                            batches,
                            lr=3e-3,
                            clip=0.1,
                            accumulate=2,
                            schedule=lambda step: 1 - step / 4,
                        )
                    )
                assert float(uploads[-1].state.k) == 4
            server.update(uploads)
        servers.append(server)
    same(servers[0].broadcast(), servers[1].broadcast())


def test_trainer_goes_on_in_the_middle_of_a_round(example, fresh, task, tmp_path):
    trainer = example("trainer")
    model = Scored()
    blocks = fedadamw.Blocks.of(model)
    server = fedadamw.Server(model, blocks=blocks)
    server.update([trainer.train_client(model, blocks, server.broadcast(), rows(task, 0), **STEPS)])
    down = server.broadcast()
    keep = STEPS | {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path)}
    whole = trainer.train_client(model, blocks, down, rows(task, 40), **keep)
    model = Scored()
    opt = fedadamw.FedAdamW(model.named_parameters(), lr=3e-3, blocks=blocks)
    trainer.new_trainer(model, rows(task, 40), opt, **keep).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same(whole, opt.finish_round(), atol=0)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_is_the_plain_loop(example, fresh, precision):
    from accelerate import Accelerator

    loop, digits = example("accelerate_loop"), example("digits")
    clients = [TensorDataset(*data[:56]) for data in digits.load()[0][:2]]
    loaders = [DataLoader(data, batch_size=8) for data in clients]
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_steps=2, cpu=True)
    theirs = loop.rounds(accelerator, digits.network(16), loaders, 2)

    def loss_of(model, batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(batch[0])
        return nn.functional.cross_entropy(logits.float(), batch[1])

    model = digits.network(16)
    ours = fedadamw.Server(model)
    for _ in range(2):
        down = ours.broadcast()
        ours.update(
            plain_round(model, down, loss_of, list(loader), lr=3e-3, clip=1.0, accumulate=2) for loader in loaders
        )
    assert float(theirs.broadcast().state.t) == 8  # seven batches a round: three pairs, and the last one alone
    same(theirs.broadcast(), ours.broadcast(), atol=1e-6)


LIGHTNING = pytest.mark.filterwarnings(
    "ignore:`isinstance\\(treespec, LeafSpec\\)`:FutureWarning",
)


def lightning_data(digits):
    """One batch of a client, in double precision: the order in it does not matter."""
    pixels, labels = digits.load()[0][0][:32]
    return TensorDataset(pixels.double(), labels)


@LIGHTNING
def test_lightning_is_the_plain_loop(example):
    digits, lightning = example("digits"), example("lightning_module")
    data = lightning_data(digits)
    servers = []
    for theirs in (True, False):
        network = digits.network(16).double()
        blocks = fedadamw.Blocks.of(network)
        server = fedadamw.Server(network, blocks=blocks)
        for _ in range(2):
            if theirs:
                up = lightning.fit(lightning.Client(network, blocks, server.broadcast()), data, max_epochs=5)
            else:
                up = plain_round(
                    network,
                    server.broadcast(),
                    lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
                    [data.tensors] * 5,
                    lr=3e-3,
                    clip=1.0,
                )
            assert float(up.state.k) == 5
            server.update([up])
        servers.append(server)
    same(servers[0].broadcast(), servers[1].broadcast())


@LIGHTNING
def test_lightning_goes_on_in_the_middle_of_a_round(example, tmp_path):
    digits, lightning = example("digits"), example("lightning_module")
    data = lightning_data(digits)
    network = digits.network(16).double()
    blocks = fedadamw.Blocks.of(network)
    server = fedadamw.Server(network, blocks=blocks)
    server.update([lightning.fit(lightning.Client(network, blocks, server.broadcast()), data, max_epochs=2)])
    down = server.broadcast()
    whole = lightning.fit(lightning.Client(network, blocks, down), data, max_epochs=4)

    quiet = {"barebones": False, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False}
    client = lightning.Client(network, blocks, down)
    lightning.fit(client, data, max_epochs=2, **quiet)
    client.trainer.save_checkpoint(tmp_path / "half.ckpt")
    again = lightning.Client(digits.network(16).double(), blocks, down)
    trainer = lightning.pl.Trainer(max_epochs=4, gradient_clip_val=1.0, **quiet)
    trainer.fit(again, DataLoader(data, batch_size=32), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    same(whole, again.up)
