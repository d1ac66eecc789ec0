"""How the Haar coefficients are laid out over the levels of the noisy part's U-Net."""

import jax
import numpy as np
import pytest

from ummcsgm.models.residual_mm_csn import bands_of_levels, coefficients_by_level
from ummcsgm.utils.haar import haar


@pytest.mark.parametrize(("depths", "patch"), [(1, 4), (2, 4), (3, 2), (2, 1)])
def test_each_position_has_the_coefficients_of_its_own_pixels(depths, patch):
    """Those of one block alone are not 0 where the image is 0 but in that block; and back."""
    side = patch * 2 ** (depths - 1)
    image = np.zeros((1, 3 * side, 2 * side, 2), np.float32)
    block = np.random.default_rng(0).normal(size=(side, side))
    image[0, side : 2 * side, side:, 1] = block
    bands = haar(jax.numpy.asarray(image), side.bit_length() - 1)
    levels = coefficients_by_level(bands, depths)
    for depth, found in enumerate(levels):
        width = 2 ** (depths - 1 - depth)  # positions of the block along an axis
        pixels = patch * 2**depth
        count = patch**2 if depth == 0 else 4
        assert found.shape == (1, 3 * width, 2 * width, 2, count)
        inside = np.zeros(found.shape, bool)
        inside[0, width : 2 * width, width:, 1] = True
        assert not np.any(np.asarray(found)[~inside]) and np.all(np.asarray(found)[inside])
        sums = block.reshape(width, pixels, width, pixels).sum(axis=(1, 3))
        own = np.asarray(found)[0, width : 2 * width, width:, 1]
        np.testing.assert_allclose(own[..., 0], sums / pixels, rtol=1e-4, atol=1e-5)
        if depth == 0:  # orthonormal within a patch
            squares = (block**2).reshape(width, pixels, width, pixels).sum(axis=(1, 3))
            np.testing.assert_allclose((own**2).sum(axis=-1), squares, rtol=1e-4)
    again = bands_of_levels(levels[::-1], patch)
    assert jax.tree.structure(again) == jax.tree.structure(bands)
    jax.tree.map(np.testing.assert_array_equal, again, bands)
