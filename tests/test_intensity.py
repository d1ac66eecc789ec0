"""The scale is of tissue, and the background is 0 both ways."""

import numpy as np
import pytest

from ummcsgm.data.intensity import denormalise, fit_scale, normalise


def test_the_scale_is_the_percentile_of_what_is_not_zero():
    values = np.arange(1, 1002, dtype=np.float32)  # 99.5 % of the way is 996
    volume = np.concatenate([np.zeros(5000, np.float32), values])
    assert fit_scale(volume.reshape(1, 1, -1)) == pytest.approx(996, abs=1e-6)


def test_negative_values_are_data():
    values = np.arange(-100, 901, dtype=np.float32)  # of which one is 0
    expected = np.sort(np.delete(values, 100))
    place = 0.995 * 999
    below = int(place)
    between = expected[below] + (place - below) * (
        expected[below + 1] - expected[below]
    )
    assert fit_scale(values) == pytest.approx(float(between), rel=1e-6)


@pytest.mark.parametrize(
    "volume, word", [(np.zeros((2, 2, 2)), "every voxel is 0"), (-np.ones(9), "-1")]
)
def test_what_cannot_be_scaled_is_refused_with_a_sentence(volume, word):
    with pytest.raises(ValueError, match=word):
        fit_scale(volume)


def test_normalising_divides_and_comes_back():
    volume = np.array([0, -75, 0.25, 1678, 1e-30], np.float32)
    scaled = normalise(volume, 812.5)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, volume / 812.5, rtol=1e-6)
    again = denormalise(scaled, 812.5)
    assert again.dtype == np.float32 and again[0] == 0 and scaled[0] == 0
    np.testing.assert_allclose(again, volume, rtol=2e-7)


def test_the_scale_of_a_volume_in_its_own_units_is_one():
    volume = np.random.default_rng(0).gamma(2, 300, (5, 6, 7)).astype(np.float32)
    assert fit_scale(normalise(volume, fit_scale(volume))) == pytest.approx(1, abs=1e-6)
    assert fit_scale(volume * 3) == pytest.approx(3 * fit_scale(volume), rel=1e-6)
