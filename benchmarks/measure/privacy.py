"""Measure a local step with differential privacy of samples against one without, and against Opacus's.

Both take batches of the same size, of made-up images or texts: a client has as many samples as a batch, which all are
in each. Opacus (its hooks, then AdamW) takes the same gradient on the same model, and is measured against the same step
without it. That the gradients are equal, without noise, is checked before anything is timed.

    python -m benchmarks.measure.privacy [--repeats 15] [--models vit-micro,minilm-lora] [--record]
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import opacus
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.data.images import Images
from fedadamw.data.samples import Samples
from fedadamw.data.texts import Texts
from fedadamw.engine.private_gradient import SampleGradients, SamplePrivacy
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.workspace import Workspace
from fedadamw.prepare.malloc import keep_freed_memory
from fedadamw.prepare.problem import Problem, open_pretrained
from fedadamw.prepare.simulation import build_algorithm, build_problem
from fedadamw.randomness import Seeded
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.load import load
from fedadamw.task import Batch, Task
from fedadamw.vector import Layout, trainable

ROUNDS = 1_000_000  # of a simulation that is stepped by hand: its learning rate hardly moves, and no round evaluates
CLIP, NOISE = 1.0, 1.0
LIMIT = 2.2  # times the step without privacy, that a step may take
Stepper = Callable[[], None]


class Job(NamedTuple):
    """A model, and the batches that it is trained on."""

    recipe: str
    shape: tuple[int, ...]  # of a sample: channels, height, width, or tokens
    batch: int
    stack: int  # clients
    overrides: tuple[str, ...] = ()


JOBS = {
    "vit-micro": Job("digits", (1, 8, 8), 50, 4),
    "vit-nano": Job("small/cifar10-vit-dir0.1", (3, 32, 32), 20, 4, ("data.crop_padding=0", "data.flip=false")),
    "minilm-lora": Job("small/sst2-minilm-lora", (64,), 16, 2, ("training.group_by_length=false",)),
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--models", default=",".join(JOBS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="local steps that are timed together")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()  # as a run does
    models = {name: measure(JOBS[name], args.steps, args.repeats, device) for name in args.models.split(",")}
    for name, found in models.items():
        print(f"{name}: {found['d']:,} numbers, batches of {found['batch']}")
        for way, row in found["ways"].items():
            print(f"  {way:32} {row['ms']:9.2f} ms {row['of_plain']:6.2f} x without privacy")
    content = {
        "commit": commit(),
        "device": device_name(device),
        "torch": torch.__version__,
        "opacus": opacus.__version__,
        "threads": args.threads,
        "repeats": args.repeats,
        "limit": LIMIT,
        "models": models,
    }
    records.write("private-step", args.device, content, record=args.record)


def measure(job: Job, steps: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Return the milliseconds of a step each way, the fastest of `repeats` in turns."""
    check_same_gradients(job, device)
    makers: dict[str, tuple[int, Callable[[], Stepper]]] = {  # steps of clients that a call takes
        "loop": (steps, lambda: ours(job, steps, device)),
        "loop, with privacy": (steps, lambda: ours(job, steps, device, noise=NOISE)),
        "stacked": (steps * job.stack, lambda: ours(job, steps, device, stack=job.stack)),
        "stacked, with privacy": (steps * job.stack, lambda: ours(job, steps, device, stack=job.stack, noise=NOISE)),
        "torch": (steps, lambda: theirs(job, steps, device)),
        "torch, Opacus": (steps, lambda: theirs(job, steps, device, noise=NOISE)),
    }
    made = {name: make() for name, (_, make) in makers.items()}
    times = {name: seconds / makers[name][0] for name, seconds in time_in_turns(made, repeats, device).items()}
    ways = {
        name: {"ms": round(1e3 * s, 4), "of_plain": round(s / times[name.split(",")[0]], 3)}
        for name, s in times.items()
    }
    numbers = Layout.of(problem_of(job, device).model).d
    return {"d": numbers, "batch": job.batch, "shape": job.shape, "stack": job.stack, "ways": ways}


def time_in_turns(steps: dict[str, Stepper], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the least seconds of each, which take turns; the first call of each is not counted."""
    least = dict.fromkeys(steps, float("inf"))
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def ours(job: Job, steps: int, device: torch.device, *, stack: int = 1, noise: float | None = None) -> Stepper:
    """A round of `steps` local steps of `stack` clients. noise: its multiplier, with privacy."""
    return simulation(job, steps, device, stack=stack, noise=noise).step


def simulation(
    job: Job, steps: int, device: torch.device, *, stack: int = 1, noise: float | None = None, clip: float = CLIP
) -> Simulation:
    """FedAdamW on `stack` clients that have a batch of samples each."""
    given = () if noise is None else (f"privacy.noise_multiplier={noise}", f"privacy.clip={clip}")
    fixed = (f"training.rounds={ROUNDS}", f"training.evaluate_every={ROUNDS}", "training.clip=null")
    wanted = (f"training.steps={steps}", f"training.clients_per_round={stack}", f"training.batch_size={job.batch}")
    experiment = load(job.recipe, (*job.overrides, *fixed, *wanted, *given))
    model, task, _ = problem_of(job, device, clients=stack)
    algorithm = build_algorithm(experiment, model)
    partition = np.split(np.arange(job.batch * stack), stack)
    privacy = None if noise is None else SamplePrivacy(clip, noise, job.batch, Seeded(0))
    return Simulation.in_process(model, algorithm, task, partition, experiment.training, stack=stack, privacy=privacy)


def problem_of(job: Job, device: torch.device, clients: int = 1) -> Problem:
    """The recipe's model, and a task of made-up samples for so many clients."""
    experiment = load(job.recipe, job.overrides)
    pretrained = open_pretrained(experiment)
    data = made_up(job.shape, job.batch * clients)
    return build_problem(experiment, pretrained, data, data, device)


def made_up(shape: tuple[int, ...], count: int) -> Samples:
    """Random images, or texts of random words."""
    generator, labels = np.random.default_rng(0), np.arange(count) % 2
    classes = tuple("0123456789")
    if len(shape) == 3:
        pixels = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
        return Images(pixels, labels, classes)
    (tokens,) = shape
    words = generator.integers(1000, 20_000, count * tokens).astype(np.int32)
    return Texts(words, np.zeros(len(words), np.int8), np.arange(count + 1) * tokens, labels, classes[:2])


def theirs(job: Job, steps: int, device: torch.device, *, noise: float | None = None) -> Stepper:
    """`steps` steps of torch's AdamW. noise: its multiplier, by Opacus."""
    model, task, _ = problem_of(job, device)
    trained, optimizer = with_opacus(model, job, noise) if noise is not None else (model, adamw(model))
    trained.train()
    samples = torch.arange(job.batch)

    def step() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            task.losses(trained, batch_of(task, samples)).mean().backward()
            optimizer.step()

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """torch's AdamW of what is trained, by its fastest kernel."""
    return torch.optim.AdamW(trainable(model).values(), lr=1e-3, weight_decay=0.01, fused=True)


def with_opacus(model: nn.Module, job: Job, noise: float) -> tuple[nn.Module, DPOptimizer]:
    """The model with Opacus's hooks, and an optimizer that clips and adds noise."""
    hooked = GradSampleModule(model)
    optimizer = DPOptimizer(
        adamw(model), noise_multiplier=noise, max_grad_norm=CLIP, expected_batch_size=job.batch, loss_reduction="mean"
    )
    return hooked, optimizer


def batch_of(task: Task, samples: Tensor) -> Batch:
    """The batch of these samples."""
    return task.batch(samples, task.draw(len(samples), torch.Generator().manual_seed(0)))


def check_same_gradients(job: Job, device: torch.device) -> None:
    """Check that the clipped gradient of a batch is Opacus's, and that without clipping a step is the plain one."""
    model, task, _ = problem_of(job, device)
    batch = batch_of(task, torch.arange(job.batch))
    workspace = Workspace(drop_nothing(model))
    privacy = SamplePrivacy(CLIP, 0.0, job.batch, Seeded(0))
    SampleGradients(workspace, task, load(job.recipe, job.overrides).training, privacy).fill(batch)
    mine = workspace.gradient / job.batch
    workspace.release()
    hooked, optimizer = with_opacus(model, job, 0.0)
    task.losses(hooked, batch).mean().backward()
    optimizer.pre_step()
    his = torch.cat([p.grad.flatten() for p in trainable(model).values()])
    torch.testing.assert_close(mine, his, rtol=1e-3, atol=1e-5 * float(his.abs().max()))


def drop_nothing(model: nn.Module) -> nn.Module:
    """The model without random dropping; layers with parameters still train, which Opacus looks at."""
    model.eval()
    for layer in model.modules():
        layer.training = any(p.requires_grad for p in layer.parameters(recurse=False))
    return model


if __name__ == "__main__":
    main()
