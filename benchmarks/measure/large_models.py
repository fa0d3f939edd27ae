"""Plan language models of 0.6B to 70B for GPUs: memory by part, for the recipes and for plain settings of each size.

Nothing is loaded or trained: the shapes are those of the published configurations, and `fedadamw plan` rehearses a
round of each. Takes some minutes on one core.

    python -m benchmarks.measure.large_models [--record]
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.plan.plan import Plan, make_plan
from fedadamw.plan.room import find_room
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load
from fedadamw.settings.recipes import list_recipes, read_recipe_text

QWEN = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "vocab_size": 151936}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256}


def shape(kind: Mapping[str, Any], *sizes: int, tied: bool) -> dict[str, Any]:
    """A configuration: width, MLP, layers, heads, key and value heads."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {
        **kind,
        **dict(zip(names, sizes, strict=True)),
        "max_position_embeddings": 8192,
        "tie_word_embeddings": tied,
    }


SHAPES = {  # as their configurations on the hub say
    "Qwen/Qwen3-0.6B": shape(QWEN, 1024, 3072, 28, 16, 8, tied=True),
    "meta-llama/Llama-3.2-1B-Instruct": shape(LLAMA, 2048, 8192, 16, 32, 8, tied=True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": shape({**LLAMA, "vocab_size": 49152}, 2048, 8192, 24, 32, 32, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": shape({**LLAMA, "head_dim": 128}, 3072, 8192, 28, 24, 8, tied=True),
    "Qwen/Qwen3-4B": shape(QWEN, 2560, 9728, 36, 32, 8, tied=True),
    "Qwen/Qwen3-8B": shape(QWEN, 4096, 12288, 36, 32, 8, tied=False),
    "meta-llama/Llama-3.1-8B": shape(LLAMA, 4096, 14336, 32, 32, 8, tied=False),
    "meta-llama/Llama-3.1-70B": shape(LLAMA, 8192, 28672, 80, 64, 8, tied=False),
}
SIZES = ("Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Qwen/Qwen3-4B", "meta-llama/Llama-3.1-8B",
         "meta-llama/Llama-3.1-70B")  # fmt: skip
WAYS = {  # of keeping the base and the activations
    "bfloat16": (),
    "bfloat16, checkpointing": ("training.gradient_checkpointing=true",),
    "4 bits": ("model.quantize=4bit",),
    "4 bits, checkpointing": ("model.quantize=4bit", "training.gradient_checkpointing=true"),
}
PLAIN = (
    "data={task: causal-lm, source: ./texts.csv, max_length: 1024, validation: 0.1}",
    "lora={r: 16, alpha: 32, target_modules: all-linear}",
    "model.dtype=bfloat16",
    "training={steps: 10, batch_size: 8, micro_batch: 1, precision: bf16}",
    "stack=1",
)


def main() -> None:
    parser = new_parser(__doc__, devices=["cpu"])
    parser.add_argument("--only", metavar="TEXT", help="plan only what has TEXT in its name")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {"sizes": {}, "recipes": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in SIZES:
            for way, settings in WAYS.items():
                if args.only in (None, name):
                    found["sizes"].setdefault(name, {})[way] = plan("digits", name, [*PLAIN, *settings], Path(folder))
        for recipe in list_recipes():
            if recipe.startswith("llm/") and args.only in (None, recipe):
                found["recipes"][recipe] = plan(recipe, name_in(recipe), [], Path(folder))
    records.write("large-models", "cpu", {"commit": commit(), **found}, record=args.record)


def name_in(recipe: str) -> str:
    """The hub id of a recipe's model."""
    text = read_recipe_text(recipe)
    return next(name for name in SHAPES if name in text)


def plan(recipe: str, name: str, settings: Sequence[str], folder: Path) -> dict[str, Any]:
    """What `fedadamw plan` says of a model of this shape on one GPU."""
    place = folder / name.replace("/", "-")
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(SHAPES[name]))
    experiment = load(recipe, [*settings, f"model.name={place}", "device=cuda"])
    made: Plan = make_plan(experiment, room=find_room(experiment, 10_000))
    print(f"{recipe} {name} {' '.join(settings[len(PLAIN) :])}: {made.peak / 1e9:.1f} GB", flush=True)
    t, model = experiment.training, experiment.model
    used = {"micro_batch": t.micro_batch, "max_length": experiment.data.max_length, "quantize": model.quantize}
    return {**made.to_dict(), **used, "gradient_checkpointing": t.gradient_checkpointing, "model": name}


if __name__ == "__main__":
    main()
