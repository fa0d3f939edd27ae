"""Settings that describe data which only nodes have: what goes together, and what is refused in one line."""

import pytest
from support import image_files, tiny_models
from transformers import AutoModelForSequenceClassification

from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

NODES = ["partition={kind: nodes, clients: 3}", "training.clients_per_round=3"]
TEXT = ["data={task: text, classes: [ok, alarm]}", "model=bert/base"]
IMAGE = ["data={classes: [ok, alarm], image_size: 8, image_mode: grey}"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ([*IMAGE, "partition.kind=iid"], r"data.classes=\['ok', 'alarm'\] is for nodes that have their own data"),
        ([*TEXT, "data.classes=[ok]"], "is one class; give two or more"),
        ([*TEXT, "data.classes=[ok, alarm, ok]"], "'ok' is there twice"),
        ([*TEXT, "data.classes=[ok, '']"], "a class has no name"),
        ([*TEXT, "data.classes=[yes, no]"], "put them in quotes"),
        ([*TEXT, "data.validation=0.1"], "data.validation=0.1: the server has no data"),
        ([*TEXT, "keep_best=true"], "keep_best=true: the server has no data .* set training.client_evaluation"),
        (
            ["data={task: causal-lm, classes: [], metrics: rouge-l}", "model=a/b"],
            "data.metrics=.'rouge-l'.: the server",
        ),
        (
            ["data={task: causal-lm, classes: [], label_column: topic}", "model=a/b"],
            "data.label_column='topic': data.t",
        ),
        ([*TEXT, "data.task=stsb"], "data.task='stsb' predicts no classes"),
        ([*TEXT, "data.task=causal-lm"], "data.task='causal-lm' predicts no classes"),
        ([*TEXT, "data.task=sst2", "data.classes=[]"], "data.task='sst2' predicts classes; give their names"),
        (["data.classes=[]"], "data.task='image' predicts classes; give their names"),
        (["data.classes=[ok, alarm]"], "give data.image_size and data.image_mode for model.name='vit-micro'"),
        ([*IMAGE, "data.mean=0.5"], "data.mean and data.std go together"),
        ([*IMAGE, "data.mean=127", "data.std=50"], "of pixels divided by 255"),
        ([*IMAGE, "data.mean=0.5", "data.std=0"], "of pixels divided by 255"),
        ([*IMAGE, "data.mean=[0.5, 0.4]", "data.std=0.1"], "give one or three of each"),
        ([*TEXT, "data.mean=0.5", "data.std=0.2"], "data.mean is not a setting of data.task='text'"),
    ],
)
def test_settings_that_do_not_describe_data_are_refused(settings, why):
    with pytest.raises(InputError, match=why) as refused:
        check_settings(load("digits", [*NODES, *settings]), remote=True)
    assert "\n" not in str(refused.value).strip()


@pytest.mark.parametrize("settings", [TEXT, IMAGE])
def test_the_simulator_refuses_data_that_only_nodes_have(settings):
    with pytest.raises(InputError, match="is the data on Flower's nodes: it cannot be simulated"):
        prepare(load("digits", [*NODES, *settings]))


def test_pixels_are_normalised_as_given_in_the_simulator_too():
    facts = prepare(load("digits", ["data.mean=0.3", "data.std=0.4"])).facts
    assert (facts["mean"], facts["std"]) == ((0.3,), (0.4,))
    with pytest.raises(InputError, match="data.mean has 3 numbers; the images have 1 channel"):
        prepare(load("digits", ["data.mean=[0.3, 0.3, 0.3]", "data.std=[0.4, 0.4, 0.4]"]))


def test_a_pretrained_models_image_processor_describes_the_images(tmp_path):
    own = {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 3}
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.2)
    place = image_files.vit(tmp_path / "hub", {**own, "image_mean": list(mean), "image_std": list(std)}, side=32)
    settings = [*NODES, f"model={place}", "data.classes=[ok, alarm]"]
    facts = prepare(load("digits", settings), remote=True).facts
    assert (facts["shape"], facts["fit"], facts["mean"], facts["std"]) == ([3, 32, 32], "model", mean, std)
    smaller = prepare(load("digits", [*settings, "data.image_size=16", "data.image_mode=grey"]), remote=True).facts
    assert (smaller["shape"], smaller["fit"]) == ([1, 16, 16], "crop")
    with pytest.raises(InputError, match="data.mean: model.name=.* has an image processor with its own"):
        prepare(load("digits", [*settings, "data.mean=0.5", "data.std=0.2"]), remote=True)


def test_numbers_without_a_sample_are_predicted_by_one_output(tmp_path):
    place = tiny_models.folder(tmp_path / "bert", "bert")
    numbers = prepare(load("digits", [*NODES, f"model={place}", "data={task: text, classes: []}"]), remote=True)
    assert (numbers.facts["classes"], numbers.facts["edges"]) == (("lowest to highest",), ())
    assert numbers.workspace.module.config.num_labels == 1
    assert numbers.task.held_out == 0
    assert numbers.task.unpooled == ()


def test_a_trained_head_must_have_the_classes_in_their_order(tmp_path):
    place = tiny_models.folder(tmp_path / "bert", "bert")
    names = {"id2label": {0: "alarm", 1: "ok"}, "label2id": {"alarm": 0, "ok": 1}}
    AutoModelForSequenceClassification.from_pretrained(place, **names).save_pretrained(place)
    with pytest.raises(InputError, match=r"in another order; give data.classes=\['alarm', 'ok'\]"):
        prepare(load("digits", [*NODES, *TEXT, f"model={place}"]), remote=True)
