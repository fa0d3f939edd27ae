"""Maps of curvature are one picture each, whose pixels say what the legend says."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from fedadamw.report.run_charts import save_chart
from fedadamw.theory.curvature.blocks_output import DARK, maps_chart
from fedadamw.theory.curvature.inside import Map


def test_a_map_is_a_picture_of_its_values(tmp_path):
    values = torch.zeros(64, 64)
    values[0, 1], values[63, 63] = 1.0, 0.25
    chart = maps_chart([Map("vit.layers.0.mlp.fc1.weight", "mlp", values)])
    url = chart.to_dict(validate=False)["data"]["values"][0]["picture"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    times = len(picture) // 64
    dark = np.array([int(DARK[i : i + 2], 16) for i in (1, 3, 5)])
    cells = picture[times // 2 :: times, times // 2 :: times]
    assert (cells[0, 1] == dark).all(), "row 0, column 1: the first index goes down"
    assert np.abs(cells[63, 63] - (255 + (dark - 255) / 2)).max() <= 1, "half of the way for a quarter: its root"
    assert (cells[1, 0] == 255).all()
    save_chart(chart, tmp_path / "map.svg")
    text = (tmp_path / "map.svg").read_text()
    assert "data:image/png" in text
    assert len(text) < 30_000, "not a shape for each of 4,096 cells"
