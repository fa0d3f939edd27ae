"""`fedadamw plan`: the table adds up, and nothing but a configuration is needed."""

import json

import pytest
from support import tiny_models

TEXTS = ["-s", "data.task=causal-lm", "-s", "data.source=./none.csv", "-s", "data.max_length=32"]


@pytest.fixture
def bare_folder(tmp_path):
    """A folder with config.json only."""
    tiny_models.config("llama").save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    return str(tmp_path)


def plan(run_main, *arguments):
    done = run_main("plan", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_table_adds_up_in_eighty_columns(run_main):
    done = run_main("plan", "digits", "-s", "device=cpu", "--ranks", "1")
    lines = done.stdout.splitlines()
    end = next(n for n, line in enumerate(lines) if line.startswith("sum"))
    assert max(map(len, lines[: end + 1])) <= 80
    columns = [[float(cell) for cell in line[26:].split()] for line in lines[1 : end + 1]]
    total = sum(sum(row) for row in columns[:-1])
    assert total == pytest.approx(sum(columns[-1]), abs=0.05 * len(columns) * 4)
    assert lines[-1].startswith("fits: it needs ")


def test_of_a_model_only_its_configuration_is_needed(run_main, bare_folder):
    found = plan(run_main, "digits", *TEXTS, "-s", f"model={bare_folder}", "-s", "lora.r=2", "-s", "device=cpu")
    assert found["frozen"] > 10 * found["trained"] > 0
    assert found["phases"]["training"]["frozen weights"] >= 4 * found["frozen"]
    assert 4 * found["trained"] < found["up_bytes"] < found["down_bytes"]
    assert found["engine"] == "loop"


def test_a_device_that_is_not_here_has_the_given_memory_and_its_own_engine(run_main):
    gpu = plan(run_main, "digits", "-s", "device=cuda", "--memory", "0.03")
    assert (gpu["free"], gpu["engine"]) == (30_000_000, "stacked")
    assert gpu["stack"] == gpu["clients_per_round"] // 2  # all at once do not fit
    assert gpu["fits"]
    assert "checkpoint" not in gpu["phases"]  # is written from the host's memory


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "recipe 'nothing' is unknown"),
        (["digits", "-s", "model.dtype=float8"], "model.dtype"),
        (["digits", "-s", "training.clients_per_round=101"], "clients_per_round=101"),
        (["digits", "--ranks", "11"], "--ranks 11: more than the 10 clients per round; use at most 10"),
        (["digits", "-s", "shards=3", "-s", "lora.r=2", "--ranks", "4"], "--ranks 4: is not a multiple of shards=3"),
    ],
)
def test_bad_input_is_one_line(run_main, arguments, words):
    done = run_main("plan", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
