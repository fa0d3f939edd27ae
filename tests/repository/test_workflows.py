"""The workflows that test and release on GitHub name what this repository has."""

import re

import pytest
import yaml
from support.checkout import ROOT

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
PROJECT = (ROOT / "pyproject.toml").read_text()
pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")


def steps(name):
    return [step for job in WORKFLOWS[name]["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_target_is_in_the_makefile(name):
    makefile = (ROOT / "Makefile").read_text()
    matrix = WORKFLOWS[name]["jobs"].get("slow", {}).get("strategy", {}).get("matrix", {})
    targets = re.findall(r"make ([a-z-]+)", str(steps(name))) + matrix.get("target", [])
    assert targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []


@pytest.mark.parametrize(("name", "job"), [("ci", "test"), ("release", "wheel")])
def test_every_supported_python_is_tested(name, job):
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert WORKFLOWS[name]["jobs"][job]["strategy"]["matrix"]["python"] == supported


def test_every_extra_that_users_install_is_tested_alone():
    section = PROJECT.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    extras = set(re.findall(r"^([a-z]+) = ", section, re.MULTILINE)) - {"dev", "docs", "examples"}
    tested = {row["extra"] for row in WORKFLOWS["release"]["jobs"]["extra"]["strategy"]["matrix"]["include"]}
    assert tested == extras


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_have_versions(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert [action for action in used if not re.search(r"@v\d+(\.\d+\.\d+)?$", action)] == []


def test_only_the_jobs_that_publish_may_write():
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}
        may = {job: settings["permissions"] for job, settings in workflow["jobs"].items() if "permissions" in settings}
        assert may == ({"publish": {"id-token": "write"}, "docs": {"contents": "write"}} if name == "release" else {})
