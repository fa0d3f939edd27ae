"""Experiments on a few texts with models of a few thousand numbers."""

import numpy as np

from fedadamw.data.texts import Texts
from fedadamw.models.pretrained import Pretrained
from fedadamw.settings.load import load

ONE = ["partition={kind: iid, clients: 1}", "training={rounds: 1, clients_per_round: 1, steps: 1}", "device=cpu"]


def experiment(place, *settings, kind="bert", task="text", source="reviews.csv"):
    own = [f"data.task={task}", f"data.source={place / source}", f"model={place / kind}", "data.validation=0.2"]
    return load("digits", [*ONE, *own, *settings])


def decode_texts(place, texts: Texts, kind="bert") -> list[str]:
    """The texts in words."""
    words = Pretrained(str(place / kind)).tokenizer
    return [words.decode(part) for part in np.split(texts.tokens, texts.starts[1:-1])]
