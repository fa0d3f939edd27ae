"""`fedadamw settings` and `recipe`."""

import subprocess
import sys

import pytest
from support.command import run_command

from fedadamw.runner.digest import settings_digest
from fedadamw.settings.experiment import list_settings
from fedadamw.settings.load import load
from fedadamw.settings.recipes import RECIPE_FOLDER, list_recipes


def test_settings_names_default_and_range(run_main):
    done = run_main("settings", "training.lr")
    assert (done.returncode, done.stderr) == (0, "")
    assert "float, default 0.0003, above 0" in done.stdout
    assert "Peak learning rate" in done.stdout


def test_settings_alone_has_a_line_for_each(run_main):
    lines = [line.split() for line in run_main("settings").stdout.splitlines() if line.startswith("  ")]
    assert set(list_settings()) <= {words[0] for words in lines}
    assert all(len(words) > 3 for words in lines)


def test_settings_of_a_section_and_of_an_algorithm(run_main):
    assert "training.warmup_rounds\n    int, default 0, at least 0\n" in run_main("settings", "training").stdout
    text = run_main("settings", "algorithm.fedadamw").stdout
    assert "one of none, m, v, vm, mean-v" in text
    assert "fedlion" not in text


def test_an_unknown_setting_is_refused_in_one_line(run_main):
    done = run_main("settings", "lr")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'training.lr'" in done.stderr


@pytest.mark.parametrize("recipe", list_recipes())
def test_a_printed_recipe_is_the_same_experiment(recipe, run_main, tmp_path):
    done = run_main("recipe", recipe)
    assert done.stdout == (RECIPE_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    own = tmp_path / "my.yaml"
    own.write_text(done.stdout, encoding="utf-8")
    assert settings_digest(load(str(own))) == settings_digest(load(recipe))


@pytest.mark.slow
def test_a_printed_recipe_runs_to_the_same_numbers(tmp_path):
    (tmp_path / "my.yaml").write_text(run_command("recipe", "digits").stdout)
    short = ("-s", "training.rounds=1", "-s", "training.steps=1", "--quiet")
    for recipe in ("digits", "my.yaml"):
        done = run_command("run", recipe, *short, "--out", f"of {recipe}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    states = [(tmp_path / f"of {recipe}/checkpoint/state.safetensors").read_bytes() for recipe in ("digits", "my.yaml")]
    assert states[0] == states[1]


def test_recipe_alone_lists_them_and_an_unknown_one_is_refused(run_main):
    assert [line.split()[0] for line in run_main("recipe").stdout.splitlines()] == list(list_recipes())
    done = run_main("recipe", "digit")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "did you mean 'digits'?" in done.stderr


def test_both_import_no_torch():
    code = """
import io, sys
from contextlib import redirect_stdout, suppress
from fedadamw.cli import main
for words in (["settings"], ["settings", "algorithm.fedlamb"], ["recipe", "digits"]):
    sys.argv = ["fedadamw", *words]
    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):
        main()
    assert output.getvalue(), words
print({"torch", "numpy", "transformers"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
