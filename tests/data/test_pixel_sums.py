"""Sums of pixels: they add up over clients, and sums that no images have are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadamw.data.image_task import channel_statistics
from fedadamw.data.pixel_sums import check_pixel_sums, pool_pixel_sums, sum_pixels
from fedadamw.validation import InputError


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from([1, 3]))
def test_mean_and_deviation_of_the_sums_are_those_of_all_images(seed, counts, channels):
    generator = np.random.default_rng(seed)
    clients = [generator.integers(0, 256, (n, channels, 4, 3), dtype=np.uint8) for n in counts]
    sums = [sum_pixels(pixels).tolist() for pixels in clients]
    for own, n in zip(sums, counts, strict=True):
        check_pixel_sums(own, 12, n, 5)
        check_pixel_sums(own, 12, None, 5)
    mean, std = channel_statistics(np.concatenate(clients))
    assert pool_pixel_sums(sums) == (pytest.approx(mean, rel=1e-12), pytest.approx(std, rel=1e-10))
    assert pool_pixel_sums(sums[::-1]) == pool_pixel_sums(sums)


def test_a_client_that_claims_far_more_images_than_the_others_counts_for_ten_times_the_median():
    honest = [sum_pixels(np.full((2, 1, 4, 3), value, np.uint8)).tolist() for value in (51, 102, 255)]
    black = [[12 * 10**7, 0, 0]]
    check_pixel_sums(black, 12, None, 10**7)
    ((mean,), (std,)) = pool_pixel_sums([*honest, black])
    assert mean == pytest.approx(2 * (0.2 + 0.4 + 1) / (3 * 2 + 20))
    assert std > 0.1
    assert pool_pixel_sums([black]) == ((0.0,), (0.001,))


def test_images_of_one_colour_have_a_least_deviation():
    assert pool_pixel_sums([sum_pixels(np.full((2, 1, 3, 3), 51, np.uint8)).tolist()]) == ((0.2,), (0.001,))


@pytest.mark.parametrize(
    ("sums", "images", "why"),
    [
        ([[24, 100, 900]], 3, "24 pixels are not those of 3 images of 12"),
        ([[25, 100, 900]], None, "25 pixels are not those of 1 to 5 images"),
        ([[72, 100, 900]], None, "72 pixels are not"),
        ([[0, 0, 0]], None, "0 pixels are not"),
        ([[-12, 0, 0]], None, "-12 pixels are not"),
        ([[12, -1, 900]], 1, "the pixels' sum is -1"),
        ([[12, 3061, 780_300]], 1, "the pixels' sum is 3,061"),
        ([[12, 100, 833]], 1, "no 12 bytes with the sum 100 have it"),
        ([[12, 100, 25_501]], 1, "no 12 bytes with the sum 100 have it"),
        ([[12, 100, 900], [24, 100, 900], [12, 100, 900]], None, "different numbers of pixels"),
    ],
)
def test_sums_that_no_images_have_are_refused(sums, images, why):
    with pytest.raises(InputError, match=why):
        check_pixel_sums(sums, 12, images, 5)
