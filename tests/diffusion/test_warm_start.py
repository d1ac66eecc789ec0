"""`warm` starts above every mode of a Gaussian posterior whose voxels vary together."""

import numpy as np
import pytest
from mean_checks import assert_warm_starts_above_the_leading_mode, leading_ratio

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL, LARGE = (56, 48), (192, 160)


@pytest.mark.parametrize("steps", [12, 40])
@pytest.mark.parametrize(
    ("grid", "length"), [(SMALL, 8), (SMALL, 16), (LARGE, 8), (LARGE, 32), (LARGE, np.inf)]
)
def test_the_leading_mode_has_its_variance_within_a_twentieth(grid, length, steps):
    """Voxels of sd 0.08 whose correlation is exp(-d^2 / (2 length^2)); inf: all as one."""
    assert_warm_starts_above_the_leading_mode(grid, length, steps)


def test_a_start_at_a_constant_level_is_far_below_on_a_large_grid():
    """The noise level 3 is 37 standard deviations of a voxel, and lost nearly all of a mode."""
    scale = 14.0  # of 192 x 160 voxels of sd 0.08 that vary as one
    assert leading_ratio(LARGE, np.inf, factor=3.0 / scale) < 0.1
    assert leading_ratio(LARGE, 16, factor=0.5) < 0.5


def test_a_lower_start_loses_variance_as_it_is_said_to():
    """v / (v + tau^2) of a mode's variance v is lost, in steps so fine that nothing else is."""
    found = [leading_ratio(LARGE, 16, factor=factor, steps=400) for factor in (0.5, 1.0, 2.0)]
    assert found[0] < found[1] < found[2] < 1
    lost = 1 - np.array(found)
    odds = lost / (1 - lost)  # v / tau^2
    np.testing.assert_allclose(odds[:-1] / odds[1:], 4, rtol=0.05)
