"""Loading or drawing a base takes the memory of its own type: its weights are never first in float32."""

import subprocess
import sys

import pytest
import torch
from support import tiny_models

from benchmarks.common.base_bytes import bytes_of_base
from fedadamw.models.skeleton import build_skeleton

SIZES = {"hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 4096}
LARGEST = 1024 * 4096  # numbers of a layer
MEASURE = """
import resource, sys
import torch
from fedadamw.models.dtypes import Weights
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.text import build_language_model
from fedadamw.prepare.malloc import keep_freed_memory

def build(folder):
    weights = Weights(sys.argv[3] == "fresh", torch.bfloat16, sys.argv[4], torch.bfloat16)
    return build_language_model(Pretrained(folder), 32, weights)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

keep_freed_memory()
build(sys.argv[1])  # imports what is needed
before = peak()
build(sys.argv[2])
print("grew", peak() - before)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("memory")
    tiny_models.half_folder(path / "small", "llama", sizes=tiny_models.WIDE)
    tiny_models.half_folder(path / "large", "llama", sizes=SIZES)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "quantize"), [("files", "none"), ("fresh", "none"), ("files", "4bit"), ("fresh", "4bit")]
)
def test_the_peak_of_loading_is_about_the_size_of_the_base(place, source, quantize):
    if quantize != "none":
        pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    folders = (str(place / "small"), str(place / "large"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *folders, source, quantize], capture_output=True, text=True, check=True
    )
    grew = int(done.stdout.split()[-1])
    skeleton = build_skeleton(folders[1])
    own, whole = (bytes_of_base(skeleton, dtype, quantize).total for dtype in (torch.bfloat16, torch.float32))
    if quantize == "none":
        assert grew < 1.2 * own < whole
    else:  # a layer that is quantised exists in several forms at once, and files are mapped into memory as they are
        mapped = bytes_of_base(skeleton, torch.bfloat16).total if source == "files" else 0
        assert grew < 1.2 * (own + mapped) + 24 * LARGEST
