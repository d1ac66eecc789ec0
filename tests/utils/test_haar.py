"""The Haar transform: orthonormal, with its inverse, and white noise stays white."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mean_checks import assert_bands_are_block_means, assert_orthonormal

from ummcsgm.diffusion.bands import band_means, band_sizes
from ummcsgm.utils.haar import haar, inverse_haar, merge_level, split_level

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_the_coefficients_are_those_of_an_orthonormal_basis(levels):
    assert_orthonormal(levels)


def test_the_bands_are_differences_of_block_means():
    assert_bands_are_block_means()


def test_the_shapes_are_those_that_are_said():
    bands = haar(jnp.zeros((2, 16, 24, 5)), 3)
    assert bands.coarse.shape == (2, 2, 3, 5)
    assert [level.shape for level in bands.details] == [
        (2, 2, 3, 5, 3),
        (2, 4, 6, 5, 3),
        (2, 8, 12, 5, 3),
    ]
    sizes = [leaf[0, ..., 0].size if leaf.ndim == 4 else leaf[0, :, :, 0].size for leaf in bands[1]]
    assert [size // 6 for size in sizes] == band_sizes(3)[1:].tolist() and band_sizes(3)[0] == 1


def test_a_block_of_the_coarsest_side_is_one_coefficient():
    """Its sum over 2^J x 2^J pixels, divided by 2^J, and nothing in the details."""
    image = np.zeros((1, 16, 16, 1), np.float32)
    image[0, 8:16, 0:8] = 0.5
    bands = haar(jnp.asarray(image), 3)
    np.testing.assert_allclose(bands.coarse[0, ..., 0], [[0, 0], [0.5 * 64 / 8, 0]], atol=1e-6)
    assert max(np.abs(level).max() for level in bands.details) < 1e-6


def test_the_inverse_returns_any_image():
    images = np.random.default_rng(0).normal(size=(3, 24, 16, 2)).astype(np.float32)
    again = jax.jit(lambda images: inverse_haar(haar(images, 3)))(images)
    np.testing.assert_allclose(again, images, atol=2e-6)
    np.testing.assert_allclose(merge_level(*split_level(images)), images, atol=1e-6)


def test_white_noise_stays_white():
    """Each band has mean square 1, and its coefficients are not correlated with the next ones."""
    bands = haar(jax.random.normal(jax.random.key(0), (64, 32, 32, 1)), 3)
    power = np.asarray(band_means(jax.tree.map(jnp.square, bands))).mean(axis=0)[:, 0]
    error = np.sqrt(2 / (64 * 16 * band_sizes(3)))
    assert np.all(np.abs(power - 1) < 4.5 * error)
    for leaf in jax.tree.leaves(bands):
        pairs = np.mean(leaf[:, 1:] * leaf[:, :-1])
        assert abs(pairs) < 4.5 / np.sqrt(leaf[:, 1:].size)
