"""Which settings change a run's numbers: a run resumes only with those that it began with."""

import hashlib
import json
from typing import Any

from fedadamw.settings.experiment import Experiment

NOT_IN_DIGEST = (  # settings that change a run's numbers by rounding at most, or when it ends
    "device",
    "threads",
    "trackers",
    "checkpoint_every",
    "keep_best",
    "client_memory",
    "stack",
    "shards",
    "compile",
    "federation",
    "privacy.budget",
    "data.resident",
    "training.micro_batch",
    "training.channels_last",
    "training.evaluate_batch",
    "training.gradient_checkpointing",
)
UNDER_CLOCK = ("quorum", "over_selection", "deadline_s")  # of `federation`, which devices make act in a run
ADDED_LATER: dict[str, object] = {  # setting -> the value at which a run behaves as before the setting existed
    "data.image_size": None,
    "data.image_mode": "auto",
    "data.on_bad": "error",
    "data.packing": False,
    "model.best": False,
    "model.dtype": "auto",  # the manifest has the type of a run's base
    "model.quantize": "none",
    "data.every": 1,
    "data.prompt": None,
    "data.response": None,
    "data.metrics": [],
    "data.answers": 100,
    "data.answer_tokens": 32,
    "data.choices": [],
    "data.classes": None,
    "data.mean": None,
    "data.std": None,
    "lora.rank_pattern": {},
    "lora.alpha_pattern": {},
    "lora.rslora": False,
    "lora.dora": False,
    "lora.modules_to_save": [],
    "lora.ranks": None,
    "algorithm.memory": None,
    "training.outer": None,
    "personal": None,
    "privacy": None,
    "partition.held_out": 0.0,
    "training.client_evaluation": 0,
    "training.evaluate_clients": None,
    "algorithm.align": "always",
    "training.normalize": False,
    "training.aggregation": "synchronous",
    "training.buffer": None,
    "training.concurrency": None,
    "training.max_staleness": None,
    "training.staleness": "root",
    "devices": None,
}
NEW_DEFAULTS = {"data.max_length": "auto"}  # defaults that were null: older studies resume if their data are the same


def settings_digest(experiment: Experiment) -> str:
    """Return a digest of the settings that change a run's numbers."""
    settings = experiment.model_dump(mode="json")
    if experiment.devices is not None and not experiment.training.buffered:
        settings["under_clock"] = {name: settings["federation"][name] for name in UNDER_CLOCK}
    for path in NOT_IN_DIGEST:
        section, name = _find_section(settings, path)
        section.pop(name, None)
    for path, neutral in ADDED_LATER.items():
        section, name = _find_section(settings, path)
        if section.get(name, neutral) == neutral:
            section.pop(name, None)
    for path, default in NEW_DEFAULTS.items():
        section, name = _find_section(settings, path)
        section[name] = None if section[name] == default else section[name]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _find_section(settings: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """Return the section of the setting at `path`, {} if it is missing, and the setting's name in it."""
    *sections, name = path.split(".")
    for section in sections:
        settings = settings.get(section) or {}
    return settings, name
