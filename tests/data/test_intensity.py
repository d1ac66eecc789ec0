"""The scale is of tissue, and the background is 0 both ways."""

import numpy as np
import pytest

from ummcsgm.data.intensity import denormalise, fit_scale, normalise


def test_the_scale_is_twice_the_median_of_what_is_not_zero():
    values = np.arange(1, 1002, dtype=np.float32)
    volume = np.concatenate([np.zeros(5000, np.float32), values])
    assert fit_scale(volume.reshape(1, 1, -1)) == pytest.approx(2 * 501, abs=1e-6)


def test_negative_values_are_data():
    values = np.arange(-100, 901, dtype=np.float32)  # of which one is 0
    magnitudes = np.sort(np.abs(np.delete(values, 100)))
    assert fit_scale(values) == pytest.approx(2 * np.median(magnitudes), rel=1e-6)
    scored = np.random.default_rng(0).normal(0.02, 1, 99999)
    assert fit_scale(scored) == pytest.approx(2 * 0.6745, rel=0.02)


def test_a_bright_tumour_does_not_change_the_scale():
    healthy = np.random.default_rng(0).normal(500, 30, 9999).astype(np.float32)
    bright = healthy.copy()
    bright[healthy > 540] *= 3  # a tenth of the brain
    assert fit_scale(bright) == fit_scale(healthy)


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


def test_the_scale_of_a_volume_in_units_of_itself_is_1():
    volume = np.random.default_rng(0).gamma(2, 300, (5, 6, 7)).astype(np.float32)
    assert fit_scale(normalise(volume, fit_scale(volume))) == pytest.approx(1, abs=1e-6)
    assert fit_scale(volume * 3) == pytest.approx(3 * fit_scale(volume), rel=1e-6)
