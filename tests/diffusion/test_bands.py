"""The bands of a residual, and its largest deviation over a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mean_checks import assert_largest_deviation_by_hand

from ummcsgm.diffusion import bands as bands_module
from ummcsgm.diffusion.bands import band_factors, band_means, map_bands
from ummcsgm.utils.haar import haar

pytestmark = pytest.mark.usefixtures("quick_compile")
largest_deviation = jax.jit(bands_module.largest_deviation)


def test_a_block_has_its_amplitude_times_the_root_of_its_pixels():
    assert_largest_deviation_by_hand()


def test_white_noise_deviates_as_its_largest_of_all_blocks():
    """About sqrt(2 ln N) standard deviations of N pixels, not more with their number."""
    white = np.random.default_rng(0).normal(size=(8, 64, 64, 2)).astype(np.float32)
    found = np.sqrt(largest_deviation(jnp.asarray(white)))
    assert np.all((found > 3) & (found < 5.5))
    np.testing.assert_allclose(largest_deviation(jnp.asarray(3 * white)), 9 * found**2, rtol=1e-5)


def test_a_deviation_is_of_its_own_image_and_modality():
    images = np.zeros((3, 10, 12, 4), np.float32)
    images[1, 4:6, 4:6, 3], images[2, :, :, 0] = 1.0, 0.5
    found = np.sqrt(largest_deviation(jnp.asarray(images)))
    expected = np.zeros((3, 4))
    expected[1, 3] = 2.0
    expected[2, 0] = 0.5 * np.sqrt(10 * 12)  # of the whole image; of 8 x 8 pixels it is 4
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_factors_are_applied_image_by_image_band_by_band_and_modality_by_modality():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    bands, values = haar(jnp.asarray(images), 2), np.arange(1.0, 19.0).reshape(2, 3, 3)
    scaled = map_bands(lambda c, f: c * f, bands, band_factors(jnp.asarray(values)))
    pairs = zip([scaled.coarse, *scaled.details], [bands.coarse, *bands.details], strict=True)
    for band, (ours, plain) in enumerate(pairs):
        for image, modality in np.ndindex(2, 3):
            expected = plain[image, :, :, modality] * values[image, band, modality]
            np.testing.assert_allclose(ours[image, :, :, modality], expected, rtol=1e-6)
    means = band_means(map_bands(jnp.square, bands))
    assert means.shape == (2, 3, 3)
    np.testing.assert_allclose(means[:, 0], np.square(bands.coarse).mean(axis=(1, 2)), rtol=1e-5)
    finest = np.square(bands.details[-1]).mean(axis=(1, 2, 4))
    np.testing.assert_allclose(means[:, 2], finest, rtol=1e-5)
