"""The published vision runs with LoRA, on a small ViT and a few images in place of the hub's."""

import pytest
from support.image_files import vit

from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.vector import trainable

PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": 32}


@pytest.mark.parametrize("name", ["cifar100", "tiny-imagenet"])
def test_the_recipe_adapts_the_attention_of_every_layer_and_trains_the_head(name, tmp_path):
    own = [f"model={vit(tmp_path / 'vit', PROCESSOR)}", "data.source=digits", "data.label_column=null", "device=cpu"]
    prepared = prepare(load(f"paper/{name}-vitb-lora-dir0.1", [*own, "data.max_train=300", "data.max_test=20"]))
    model = prepared.workspace.module
    adapted = {path.split(".lora_")[0].split("layers.")[1] for path in trainable(model) if ".lora_" in path}
    layers = model.get_submodule("base_model.model").config.num_hidden_layers
    assert adapted == {f"{i}.attention.{kind}_proj" for i in range(layers) for kind in "qkvo"}
    rest = [path for path in trainable(model) if ".lora_" not in path]
    assert rest
    assert all("classifier" in path for path in rest)
    t, partition = prepared.experiment.training, prepared.experiment.partition
    assert (partition.clients, t.clients_per_round, t.batch_size, t.steps, t.rounds, t.lr) == (50, 5, 16, 50, 100, 1e-3)
