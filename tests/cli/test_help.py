"""Help, names and completion of the command line, without heavy libraries."""

import inspect
import re
import shlex
import subprocess
import sys

import click
import pytest
import typer
from support.checkout import ROOT

from fedadamw.algorithms import registry
from fedadamw.cli import ORDER, choices, flower
from fedadamw.cli.app import app
from fedadamw.models import vision


def commands(command=None, path=("fedadamw",)):
    """Yield every command and group with its words."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


@pytest.mark.parametrize(("path", "command"), [pytest.param(*found, id="-".join(found[0])) for found in commands()])
def test_help_shows_every_example_on_one_line_and_no_escapes(path, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = command.get_help(click.Context(command, info_name=" ".join(path)))
    # a backslash only at the end of a line that is continued
    assert re.findall(r"\\(?!$)|[\x00-\x09\x0b-\x1f]", text, re.MULTILINE) == []
    examples = re.findall(r"^  fedadamw .*$", text, re.MULTILINE)
    assert any(" ".join(path[:2]) in line for line in examples)
    lines = [line.strip() for line in inspect.cleandoc(command.help).splitlines()]
    assert [line for line in lines if line.startswith("fedadamw")] == [line.strip() for line in examples]
    assert "..." not in "".join(re.findall(r"Commands:(.*)", text, re.DOTALL))  # no summary is cut
    for argument in (p for p in command.params if isinstance(p, click.Argument)):
        metavar = argument.make_metavar(click.Context(command)).strip("[]")
        assert re.search(rf"^  \[?{metavar}\]?  +[A-Za-z]", text, re.M)


def test_documented_flower_new_commands_run(tmp_path, run_main):
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


def test_listed_names_are_those_of_the_modules():
    assert choices.list_algorithms() == {name: registry.settings_of(name) for name in registry.BUILT_IN}
    assert list(choices.list_algorithms()) == list(registry.BUILT_IN)
    assert tuple(choices.list_models()) == vision.NAMES


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
        with redirect_stdout(io.StringIO()) as output:
            main()
    except SystemExit as ended:
        assert not ended.code and output.getvalue(), words
    pydantic = not words.startswith("complete")  # settings are completed from their classes
    heavy = {"torch", "numpy", "transformers", "datasets", "rich", "flwr", "scipy", "sklearn", *["pydantic"] * pydantic}
    print(*heavy & set(sys.modules), end="")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_help_lists_commands_in_the_order_of_their_use():
    names = list(typer.main.get_command(app).commands)
    assert names[: len(ORDER)] == ORDER
    assert len(names) > len(ORDER)


def test_an_unknown_command_gets_one_hint(run_main):
    for words in (("evl",), ("flower", "demmo")):
        assert len(re.findall("did you mean", run_main(*words).stderr, re.I)) == 1
