"""Writes a Flower app for an experiment, to be run with `flwr run`."""

from pathlib import Path

from fedadamw.io.disk import new_folder
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.paths import mark_folders
from fedadamw.runner.tracking import check_trackers
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import EXTRAS

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "0.1.0"
description = "A fedadamw experiment on Flower"
license = "Apache-2.0"
# fedadamw itself must be installed on every machine: it is not on a package index (its docs/federation.md)
dependencies = ["{flwr}"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "fedadamw"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
settings = ""  # changes to experiment.yaml, as "training.rounds=3 algorithm.alpha=0"
out = ""  # the run's folder on the SuperLink's machine; runs/flower-<run> if empty
resume = false  # resume the run in `out`
metrics-port = 0  # serves metrics for Prometheus on the SuperLink's machine; 0: no
metrics-host = "127.0.0.1"  # address to serve them on; 0.0.0.0: reachable from other machines
"""
SERVER = '''\
"""The ServerApp; it runs next to the SuperLink."""

from pathlib import Path

from fedadamw.flower.server_app import server_app

app = server_app(Path(__file__).with_name("experiment.yaml"))
'''
CLIENT = '''\
"""The ClientApp; it runs on every SuperNode."""

from fedadamw.flower.client_app import client_app

app = client_app()
'''


def write_app(folder: Path, experiment: Experiment) -> None:
    """Write an app for `experiment` to `folder`, which must be empty or new; raises InputError if it cannot run."""
    check_settings(experiment, remote=True)
    check_trackers(experiment.trackers, here=False)
    word = folder.resolve().name.lower()
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in word).strip("-") or "app"
    package = name.replace("-", "_")
    package = f"app_{package}" if package[0].isdigit() else package
    files = {
        "pyproject.toml": PYPROJECT.format(name=name, package=package, flwr=EXTRAS["flower"][0]),
        f"{package}/__init__.py": f'"""The Flower app {name}."""\n',
        f"{package}/server_app.py": SERVER,
        f"{package}/client_app.py": CLIENT,
        f"{package}/experiment.yaml": mark_folders(experiment).to_yaml(),
    }
    with new_folder(folder) as aside:
        (aside / package).mkdir()
        for path, content in files.items():
            (aside / path).write_text(content)
