"""The tasks of GLUE (arXiv 1804.07461): their columns and metrics, as the hub's nyu-mll/glue has them."""

from typing import NamedTuple

HUB_ID = "nyu-mll/glue"


class GlueTask(NamedTuple):
    """One task: the columns it reads, and what it is measured by."""

    columns: tuple[str, ...]  # one sentence, or two that are read as a pair
    metrics: tuple[str, ...] = ("accuracy",)  # the main one first
    test_split: str = "validation"  # the test split's labels are secret


PAIR = ("sentence1", "sentence2")
TASKS = {
    "cola": GlueTask(("sentence",), ("matthews", "accuracy")),
    "mnli": GlueTask(("premise", "hypothesis"), test_split="validation_matched"),  # or validation_mismatched
    "mrpc": GlueTask(PAIR, ("f1", "accuracy")),
    "qnli": GlueTask(("question", "sentence")),
    "qqp": GlueTask(("question1", "question2"), ("f1", "accuracy")),
    "rte": GlueTask(PAIR),
    "sst2": GlueTask(("sentence",)),
    "stsb": GlueTask(PAIR, ("spearman", "pearson")),
    "wnli": GlueTask(PAIR),
}
