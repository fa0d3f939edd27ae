"""Imports nearly everything that a run needs, so that a process forked afterwards starts at once."""

import datasets  # noqa: F401
from transformers import ResNetForImageClassification, SwinForImageClassification, ViTForImageClassification  # noqa: F401

from fedadamw.runner.execute import execute  # noqa: F401
