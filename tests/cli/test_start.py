"""What a command imports before it does its work: each library costs every user its time at every start."""

import json
import subprocess
import sys

import pytest

HEAVY = {"accelerate", "altair", "datasets", "flwr", "numpy", "pandas", "peft", "pyarrow", "pydantic", "rich", "scipy"}
HEAVY |= {"sklearn", "torch", "transformers", "vl_convert", "optuna", "importlib.metadata", "email"}
OF_LISTS = {"click", "fedadamw", "shellingham", "typer", "typing_extensions", "yaml"}

SHOW = """
import json, sys
before = set(sys.modules)
sys.argv = ["fedadamw", *sys.argv[1:]]
from fedadamw.cli import main
try:
    main()
finally:
    print("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""
FIRST_ROUND = """
import json, sys
from fedadamw.engine.simulate import Simulation
def step(self):
    print("\\n" + json.dumps(sorted(sys.modules)), flush=True)
    raise SystemExit
Simulation.step = step
from fedadamw.cli import main
main()
"""


def modules_of(code: str, *arguments: str) -> set[str]:
    """The modules that are there when a command has done its work, or where `code` looks."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_and_list_import_only_what_reads_the_command_line():
    for command in ("--help", "list"):
        modules = modules_of(SHOW, command)
        tops = {name.partition(".")[0] for name in modules if not name.startswith("_")}
        assert tops - sys.stdlib_module_names <= OF_LISTS, command
        assert command != "--help" or not HEAVY & modules


@pytest.mark.slow
def test_a_run_of_digits_imports_no_data_or_chart_library_before_its_first_round(tmp_path):
    modules = modules_of(FIRST_ROUND, "run", "digits", "--ranks", "1", "--out", str(tmp_path / "run"))
    assert "transformers.models.vit.modeling_vit" in modules
    needless = {"altair", "datasets", "flwr", "optuna", "pandas", "peft", "pyarrow", "scipy.stats", "sklearn"}
    assert sorted(modules & {*needless, "vl_convert", "fedadamw.report.run_charts"}) == []
