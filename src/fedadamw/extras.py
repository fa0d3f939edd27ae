"""What the extras install, and what to say where a library of one is missing."""

from fedadamw.validation import InputError

EXTRAS = {  # as pyproject.toml has them
    "lora": ("peft>=0.17",),
    "tune": ("optuna>=4.0",),
    "track": ("accelerate>=1.10", "tensorboard>=2.15"),
    "flower": ("flwr>=1.41,<1.42", "click<8.5", "cryptography>=44", "prometheus-client>=0.21"),
}


def missing(what: str, extra: str) -> InputError:
    """The error for `what`, which needs an extra that is not installed; it names the extra's packages."""
    packages = " ".join(f"'{package}'" for package in EXTRAS[extra])
    note = " (Python 3.11 or later)" if extra == "flower" else ""
    return InputError(f"{what}: pip install {packages}{note}")
