"""Settings that contradict buffered aggregation are refused before anything is loaded."""

import pytest

from fedadamw.prepare.checks import check_settings
from fedadamw.settings.load import load
from fedadamw.validation import InputError

BUFFERED = "training.aggregation=buffered"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.buffer=5"], "training.buffer=5 is a setting of training.aggregation=buffered"),
        (["training.max_staleness=0"], "training.max_staleness=0 is a setting of"),
        (["training.staleness=none"], "training.staleness=none is a setting of"),
        ([BUFFERED, "training.buffer=101"], "training.buffer=101 is more than the 100 clients"),
        ([BUFFERED, "training.concurrency=101"], "training.concurrency=101 is more than the 100 clients"),
        ([BUFFERED, "training.mean=median"], "training.mean='median' needs all at once"),
        ([BUFFERED, "training.diagnostics=true"], "set diagnostics=false"),
        ([BUFFERED, "algorithm={name: scaffold}"], "the server of scaffold needs .* set training.staleness=none"),
        ([BUFFERED, "algorithm={name: fadamgc}"], "the server of fadamgc needs"),
        ([BUFFERED, "privacy={unit: client, noise_multiplier: 1.0, delta: 1e-5}"], "leave out privacy"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings, said):
    with pytest.raises(InputError, match=said):
        check_settings(load("digits", ["partition.clients=100", *settings]), remote=False)


@pytest.mark.parametrize("aggregate", ["alternate", "exact", "residual"])
def test_adapters_whose_mean_is_of_one_model_are_refused(aggregate):
    lora = [f"lora.aggregate={aggregate}", BUFFERED]
    with pytest.raises(InputError, match=f"lora.aggregate='{aggregate}' goes by rounds"):
        check_settings(load("small/sst2-minilm-lora", lora), remote=False)


def test_servers_that_need_every_part_take_answers_without_discount():
    settings = [BUFFERED, "algorithm={name: scaffold}", "training.staleness=none", "training.buffer=3"]
    check_settings(load("digits", settings), remote=False)
