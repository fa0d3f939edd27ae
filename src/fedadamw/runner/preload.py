"""Importing this module loads nearly everything that a run needs; a process forked after that starts at once."""

import datasets  # noqa: F401
from transformers import ResNetForImageClassification, SwinForImageClassification, ViTForImageClassification  # noqa: F401

from fedadamw.runner.execute import execute  # noqa: F401
