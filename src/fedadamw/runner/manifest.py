"""Builds manifest.json: versions, commit, device, and fingerprints of data, partition and model."""

import json
import platform
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fedadamw.algorithms.registry import find_package, needs_blocks
from fedadamw.engine.personal import shared_part
from fedadamw.prepare.counter import is_told_unequal_steps
from fedadamw.prepare.paths import list_plain_folders
from fedadamw.prepare.simulation import Prepared
from fedadamw.report.run_files import Manifest, ModelFacts, PartitionFacts
from fedadamw.runner.base_type import describe_type
from fedadamw.runner.counter import BY_Q
from fedadamw.settings.experiment import Experiment

PACKAGES = ("fedadamw", "torch", "numpy", "transformers", "datasets", "safetensors")


def build_manifest(experiment: Experiment, prepared: Prepared) -> Manifest:
    """Return the manifest of a run that is prepared and about to start."""
    layout = prepared.workspace.layout
    model: ModelFacts = {"layout": layout.fingerprint, "d": layout.d}
    if needs_blocks(experiment.algorithm_name):
        model["B"] = shared_part(prepared.algorithm).blocks.B  # type: ignore[attr-defined]  # as needs_blocks says
    if (dtype := describe_type(experiment, prepared.workspace.module)) is not None:
        model["dtype"] = dtype
    if prepared.start is not None:
        model["start"] = prepared.start
    partition: PartitionFacts = {"clients": len(prepared.partition), "fingerprint": prepared.partition.fingerprint}
    if prepared.held_out is not None:
        partition["held_out"] = prepared.held_out.fingerprint
    facts = json.loads(json.dumps(prepared.facts))  # tuples become lists, as when it is read from the file
    if "frozen" in facts:
        model["frozen"] = facts.pop("frozen")
    manifest: Manifest = {
        "versions": _collect_versions(experiment.algorithm_name),
        "commit": commit(),
        "seed": experiment.seed,
        "device": device_name(prepared.device),
        "data": {
            "train": {"samples": len(prepared.train), "fingerprint": prepared.train.fingerprint},
            "test": {"samples": len(prepared.test), "fingerprint": prepared.test.fingerprint},
            **facts,
        },
        "folders": list_plain_folders(experiment),
        "partition": partition,
        "model": model,
    }
    if experiment.devices is not None:
        manifest["devices"] = prepared.fleet.fingerprint
    if prepared.experiment.privacy is not None and prepared.experiment.privacy.noise_multiplier is not None:
        manifest["privacy"] = {"noise_multiplier": prepared.experiment.privacy.noise_multiplier}
    if is_told_unequal_steps(prepared.algorithm):
        manifest["counter"] = BY_Q
    return manifest


def _collect_versions(algorithm: str) -> dict[str, str | None]:
    """Return the versions of Python and of packages, the one that the algorithm comes from included."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    package = find_package(algorithm)
    return versions if package is None else {**versions, package.package: package.version}


def warn_of_other_package(algorithm: str, before: Manifest) -> None:
    """Warn if the algorithm comes from another package, or version of it, than when the run started."""
    package = find_package(algorithm)
    was = before["versions"].get(package.package) if package else None
    if package and was != package.version:
        warnings.warn(
            f"algorithm {algorithm!r} is of package {package} now; the run started with "
            f"{f'version {was}' if was else 'another package'}, which may give other numbers",
            stacklevel=2,
        )


def device_name(device: torch.device) -> str:
    """Describe a device: `cuda:0: NVIDIA H200`, `cpu: x86_64, 8 threads`."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Return the commit of the checkout with this package, `+changes` if it was edited; None if it is installed."""
    package = Path(__file__).parent.parent
    if not _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        return None
    revision = _git(package, "rev-parse", "HEAD")
    return revision + "+changes" if _git(package, "status", "--porcelain", ".") else revision


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
