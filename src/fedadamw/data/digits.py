"""scikit-learn's 1,797 handwritten digits of 8x8 pixels, the data set that is always at hand."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedadamw.data.image_decoding import PixelFormat, image_to_array
from fedadamw.data.image_survey import ImageSurvey
from fedadamw.data.samples import Array

DIGITS_SURVEY = ImageSurvey(colour=False, smallest=(8, 8), largest=(8, 8), same=True, bad={})


def read_digits(target: PixelFormat) -> tuple[Array, Array]:
    """Return the pixels (n, c, h, w) in the target format, and the labels (n,).

    The file is read directly, since importing `sklearn.datasets` takes 2 s.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn, which contains the digits, is not installed")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 pixels of 0 to 16, and the digit
    pixels = (table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    if target.shape != pixels.shape[1:]:
        from PIL import Image

        pixels = np.stack([image_to_array(Image.fromarray(digit), target) for digit in pixels[:, 0]])
    return pixels, table[:, -1].astype(np.int64)
