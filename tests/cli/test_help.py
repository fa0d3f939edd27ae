"""What the command line says of itself: help, names and completion, without any heavy library."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from support.checkout import ROOT

from fedadamw.algorithms import registry
from fedadamw.cli import choices as names
from fedadamw.cli import flower
from fedadamw.cli.app import app
from fedadamw.models import vision
from fedadamw.settings.experiment import list_settings_outside


def commands(command=None, path=("fedadamw",)):
    """Every command and group, by its words."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id="-".join(found[0])) for found in commands()])
def test_help_has_examples_as_they_are_typed_and_no_stray_marks(path, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = command.get_help(click.Context(command, info_name=" ".join(path)))
    assert (
        re.findall(r"\\(?!$)|[\x00-\x09\x0b-\x1f]", said, re.MULTILINE) == []
    )  # only at the end of a line that goes on
    examples = re.findall(r"^  fedadamw .*$", said, re.MULTILINE)
    assert any(" ".join(path[:2]) in line for line in examples)
    typed = [
        line.strip() for line in inspect.cleandoc(command.help).splitlines() if line.strip().startswith("fedadamw")
    ]
    assert typed == [line.strip() for line in examples]  # one a line, however long
    assert "..." not in "".join(re.findall(r"Commands:(.*)", said, re.DOTALL))  # no summary is cut
    for argument in (p for p in command.params if isinstance(p, click.Argument)):
        assert re.search(
            rf"^  \[?{argument.make_metavar(click.Context(command)).strip('[]')}\]?  +[A-Za-z]", said, re.M
        )


def test_the_examples_of_apps_can_run(tmp_path, run_main):
    pages = ["README.md", "docs/federation.md", "deploy/README.md"]
    text = "".join((ROOT / page).read_text().replace("\\\n", "") for page in pages)
    lines = re.findall(
        r"^ *(fedadamw flower new .*?)(?:  #.*)?$", flower.new.__doc__ + flower.flower.info.help + text, re.M
    )
    assert len(lines) >= 7
    for number, line in enumerate(lines):
        arguments = shlex.split(line)[1:]
        arguments[2] = str(tmp_path / str(number))
        assert run_main(*arguments).returncode == 0, line


def test_names_are_those_of_the_modules():
    assert names.algorithms() == {name: registry.settings_of(name) for name in registry.ALGORITHMS}
    assert list(names.algorithms()) == list(registry.ALGORITHMS)
    assert tuple(names.models()) == vision.NAMES
    assert {path for path in names.settings() if "." in path} == set(list_settings_outside(""))
    assert {"seed", "trackers"} < set(names.settings())


def test_names_and_help_load_no_heavy_library():
    code = """
import io, os, sys
from contextlib import redirect_stdout
from fedadamw.cli import main
for words in ("list", "--help", "--version", "run --help", "flower new --help", "complete -s training.r"):
    sys.argv = ["fedadamw", *words.split()]
    if words.startswith("complete"):
        os.environ.update(_FEDADAMW_COMPLETE="complete_bash", COMP_WORDS="fedadamw run -s training.r", COMP_CWORD="3")
    try:
        with redirect_stdout(io.StringIO()) as said:
            main()
    except SystemExit as ended:
        assert not ended.code and said.getvalue(), words
heavy = {"torch", "numpy", "transformers", "datasets", "pydantic", "rich", "flwr", "scipy", "sklearn"}
print(*heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_recipes_algorithms_models_and_settings():
    lines = {
        "fedadamw fl": "flower",
        "fedadamw run digi": "digits",
        "fedadamw flower new app small/sst": "small/sst2-minilm-lora",
        "fedadamw compare -a fedavg,fedadam": "fedavg,fedadamw fedavg,fedadam",
        "fedadamw blocks resnet": "resnet-nano resnet18",
        "fedadamw run -s training.ro": "training.rounds=",
        "fedadamw run digits -s seed = 3 -s algorithm.al": "algorithm.alpha=",  # bash splits at =
    }
    script = ["source <(fedadamw --show-completion bash)"]
    for line in lines:
        script += [f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))", "_fedadamw_completion fedadamw"]
        script.append('echo "${COMPREPLY[@]}"')
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == list(lines.values()), done.stderr


def test_an_unknown_command_is_given_its_hint_once(run_main):
    for words in (("evl",), ("flower", "demmo")):
        assert len(re.findall("did you mean", run_main(*words).stderr, re.I)) == 1
