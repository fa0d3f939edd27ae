"""Completion in bash, zsh and fish: what each asks, in this process, and a few lines in the shells themselves."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedadamw.algorithms.registry import BUILT_IN
from fedadamw.cli.complete import complete_section, complete_setting
from fedadamw.models import vision
from fedadamw.settings.data import DATA_TASKS
from fedadamw.settings.experiment import list_settings

ENDINGS = {  # what is typed, and what may stand in place of its last word
    "fedadamw fl": ["flower"],
    "fedadamw run digi": ["digits"],
    "fedadamw flower new app small/sst": ["small/sst2-minilm-lora"],
    "fedadamw recipe cif": ["cifar10-small"],
    "fedadamw compare -a fedavg,fedadam": ["fedavg,fedadamw", "fedavg,fedadam"],
    "fedadamw blocks resnet": ["resnet-nano", "resnet18"],
    "fedadamw settings training.ro": ["training.rounds"],
    "fedadamw settings algorithm.fedadam": ["algorithm.fedadamw", "algorithm.fedadam"],
    "fedadamw run -s training.ro": ["training.rounds=", "training.rounds=100"],
    "fedadamw run digits -s seed=3 -s algorithm.alp": ["algorithm.alpha=", "algorithm.alpha=0.5"],
    "fedadamw run -s algorithm.name=fedad": ["algorithm.name=fedadamw", "algorithm.name=fedadam"],
    "fedadamw run -s data.task=ima": ["data.task=image"],
    "fedadamw tune -s model.name=resnet": ["model.name=resnet-nano", "model.name=resnet18"],
}
IN_SHELLS = ["fedadamw run digi", "fedadamw run -s training.ro", "fedadamw run -s algorithm.name=fedad"]


def split_as_bash(line):
    """The words of a line, which bash also splits at =."""
    return re.findall(r"[^\s=]+|=", line)


def for_bash(line):
    """What bash gets: its word begins after the last =."""
    before, equals, _ = line.split()[-1].rpartition("=")
    return [ending.removeprefix(before + equals) for ending in ENDINGS[line]]


@pytest.mark.parametrize("line", ENDINGS)
def test_every_shell_is_answered(line, run_main, monkeypatch):
    def ask(shell, **variables):
        for name, value in {"_FEDADAMW_COMPLETE": f"complete_{shell}", **variables}.items():
            monkeypatch.setenv(name, value)
        return run_main().stdout

    words = split_as_bash(line)
    assert ask("bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1)).splitlines() == for_bash(line)
    answer = ask("zsh", _TYPER_COMPLETE_ARGS=line)
    assert re.match(r"_arguments '\*: :\(\((.*)\)\)'$", answer, re.DOTALL), answer
    assert re.findall(r'"([^"]*)"(?::"[^"]*")?', answer) == ENDINGS[line]
    answer = ask("fish", _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args")
    assert [one.partition("\t")[0] for one in answer.splitlines()] == ENDINGS[line]


def run_shell(shell, script):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([shell, "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes():
    script = ["source <(fedadamw --show-completion bash)"]
    for line in IN_SHELLS:
        script.append(f"COMP_WORDS=({' '.join(split_as_bash(line))}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))")
        script += ["_fedadamw_completion fedadamw", 'echo "${COMPREPLY[@]}"']
    assert run_shell("bash", "\n".join(script)) == [for_bash(line) for line in IN_SHELLS]


@pytest.mark.slow
def test_zsh_completes():
    script = ["compdef() {}", "_arguments() { print -r -- ${${1#*\\(\\(}%\\)\\)} }"]
    script.append('eval "$(fedadamw --show-completion zsh)"')
    for line in IN_SHELLS:
        script += [f"words=({line}); CURRENT=${{#words}}", "_fedadamw_completion"]
    answers = [[word.strip('"') for word in words] for words in run_shell("zsh", "\n".join(script))]
    assert answers == [ENDINGS[line] for line in IN_SHELLS]


@pytest.mark.slow
def test_fish_completes():
    script = ["fedadamw --show-completion fish | source"]
    script += [f'complete -C "{line}" | string join " "' for line in IN_SHELLS]
    answers = run_shell("fish", "\n".join(script))
    assert list(map(sorted, answers)) == [sorted(ENDINGS[line]) for line in IN_SHELLS]


def test_values_of_a_setting():
    assert complete_setting("algorithm.name=") == [f"algorithm.name={name}" for name in BUILT_IN]
    assert complete_setting("data.task=") == [f"data.task={task}" for task in DATA_TASKS]
    assert complete_setting("model.name=") == [f"model.name={name}" for name in vision.NAMES]
    assert complete_setting("data.flip=t") == ["data.flip=true"]
    assert complete_setting("algorithm.share=v") == ["algorithm.share=v", "algorithm.share=vm"]
    assert complete_setting("algorithm.betas=") == ["algorithm.betas=[0.9,0.999]"], "a space would end the word"
    assert complete_setting("data.source=./da") == [], "so that the shell offers files"


def test_settings_completes_sections_and_paths():
    assert {"training", "lora", "algorithm", "algorithm.fedavg", "algorithm.mu", *list_settings()} <= {
        *complete_section("")
    }
    assert complete_section("training.lr") == ["training.lr"]
