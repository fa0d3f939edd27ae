"""Measure the local step against torch.optim.AdamW: the engine's flat step and the drop-in optimizer.

All update ViT-Tiny's 5.4M parameters from the same gradients. Without alignment and sharing FedAdamW is AdamW, so the
flat steps must reach AdamW's weights: that is checked before anything is timed. With them it reads one more vector.

    python -m benchmarks.measure.step [--device cuda] [--repeats 40] [--record]
"""

import time
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

import fedadamw
from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.engine.states import clone_tensors
from fedadamw.engine.step import Kind, make_step
from fedadamw.models.vision import ImageShape, build
from fedadamw.runner.manifest import commit, device_name
from fedadamw.vector import Layout, trainable

LR, CLIP = 1e-3, 10.0
KINDS: tuple[Kind, ...] = get_args(Kind)
Stepper = Callable[[], None]
Maker = Callable[[], Stepper]


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = build("vit-tiny", ImageShape(32, 3, 10)).model.to(device)
    torch.manual_seed(0)
    gradients = {name: torch.randn_like(p) for name, p in trainable(model).items()}
    check_same_work(model, gradients)
    steps = {name: make() for name, make in makers(model, gradients, device).items()}
    times = time_in_turns(steps, args.repeats, device)
    base = times["torch AdamW, fused"]
    rows = {name: {"ms": round(1e3 * t, 3), "of_fused": round(t / base, 3)} for name, t in times.items()}
    for name, row in rows.items():
        print(f"{name:30} {row['ms']:9.3f} ms {row['of_fused']:7.2f} x fused")
    content = {
        "commit": commit(),
        "device": device_name(device),
        "torch": torch.__version__,
        "d": Layout.of(model).d,
        "repeats": args.repeats,
        "steps": rows,
    }
    records.write("step", args.device, content, record=args.record)


def makers(model: nn.Module, gradients: dict[str, Tensor], device: torch.device) -> dict[str, Maker]:
    """Makers of the steps to compare, by name."""
    return {
        "torch AdamW, fused": lambda: torch_step(model, gradients, fused=True),
        "torch AdamW, foreach": lambda: torch_step(model, gradients, foreach=True),
        "flat, compiled": lambda: flat_step(model, gradients, "compiled"),
        "flat, fused": lambda: flat_step(model, gradients, "fused"),
        "flat, plain": lambda: flat_step(model, gradients, "plain"),
        "drop-in FedAdamW": lambda: drop_in_step(model, gradients),
        "torch clip and AdamW, fused": lambda: torch_step(model, gradients, clip=True, fused=True),
        "flat with clip, compiled": lambda: flat_step(model, gradients, "compiled", clip=CLIP),
        "flat with clip, fused": lambda: flat_step(model, gradients, "fused", clip=CLIP),
        "read 4 and write 3 vectors": lambda: memory_bound_step(Layout.of(model).d, device),
    }


def torch_step(model: nn.Module, gradients: dict[str, Tensor], *, clip: bool = False, **settings: bool) -> Stepper:
    """torch's AdamW on the model's parameters."""
    parameters = [p.detach().clone() for p in trainable(model).values()]
    for p, g in zip(parameters, gradients.values(), strict=True):
        p.grad = g.clone()
    opt = torch.optim.AdamW(parameters, lr=LR, **settings)

    def step() -> None:
        if clip:
            nn.utils.clip_grad_norm_(parameters, CLIP)
        opt.step()

    step.parameters = parameters  # type: ignore[attr-defined]
    return step


def flat_step(
    model: nn.Module,
    gradients: dict[str, Tensor],
    kind: Kind,
    *,
    clip: float | None = None,
    alpha: float = 0.5,
    share: str = "mean-v",
) -> Stepper:
    """The engine's step on one vector."""
    blocks = fedadamw.Blocks.of(model)
    algorithm = FedAdamW(blocks=blocks, alpha=alpha, share=share)
    server = algorithm.server_init(blocks.layout.flatten(trainable(model)))
    down = algorithm.broadcast(server)
    local = clone_tensors(algorithm.client_start(down, ()))
    g, lr = blocks.layout.flatten(gradients), server.x.new_tensor(LR)
    advance = make_step(algorithm, clip, kind)

    def step() -> None:
        with torch.no_grad():
            advance(local, down, g, lr)

    step.y = local.y  # type: ignore[attr-defined]
    return step


def drop_in_step(model: nn.Module, gradients: dict[str, Tensor]) -> Stepper:
    """The drop-in optimizer, within a round."""
    named = [(name, nn.Parameter(p.detach().clone())) for name, p in trainable(model).items()]
    for name, p in named:
        p.grad = gradients[name].clone()
    blocks = fedadamw.Blocks.of(model)
    opt = fedadamw.FedAdamW(named, lr=LR, blocks=blocks)
    opt.start_round(fedadamw.Server(model, blocks=blocks).broadcast())
    return opt.step


def memory_bound_step(d: int, device: torch.device) -> Stepper:
    """A lower bound: moves as much memory as the fused step and computes almost nothing."""
    vectors = [torch.randn(d, device=device) for _ in range(4)]

    def step() -> None:
        for i in range(3):
            vectors[i].add_(vectors[3] if i == 0 else 1.0)

    return step


def check_same_work(model: nn.Module, gradients: dict[str, Tensor], kinds: Sequence[Kind] = KINDS) -> None:
    """Check that ten steps of each reach the same weights if FedAdamW is configured as AdamW."""
    theirs = torch_step(model, gradients, fused=True)
    ours = [flat_step(model, gradients, kind, alpha=0.0, share="none") for kind in kinds]
    for _ in range(10):
        for step in (theirs, *ours):
            step()
    expected = torch.cat([p.reshape(-1) for p in theirs.parameters])  # type: ignore[attr-defined]
    for step in ours:
        torch.testing.assert_close(step.y, expected, rtol=1e-5, atol=1e-6)  # type: ignore[attr-defined]


def time_in_turns(steps: dict[str, Stepper], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each step, the fastest of `repeats`, in turns so that other load on the machine affects all alike."""
    best = dict.fromkeys(steps, float("inf"))
    for turn in range(repeats + 3):
        for name, step in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            if turn >= 3:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
