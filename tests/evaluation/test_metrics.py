"""Metrics of images against scikit-image and hand calculation."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ummcsgm.evaluation.metrics import mae, mean_and_sd, psnr, ssim_global, ssim_wang
from ummcsgm.types import InputError


def _pair(shape, peak, seed):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, peak, shape)
    return truth, np.clip(truth + rng.normal(0, 0.2 * peak, shape), 0, peak)


@pytest.mark.parametrize("peak", [1.0, 2.0, 255.0])
@pytest.mark.parametrize("shape", [(11, 11), (12, 31), (64, 48)])
def test_ssim_wang_equals_scikit_image(shape, peak):
    truth, estimate = _pair(shape, peak, seed=1)
    expected = structural_similarity(
        truth,
        estimate,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=peak,
    )
    assert ssim_wang(truth, estimate, peak) == pytest.approx(expected, abs=1e-9)


def test_ssim_global_is_the_one_uniform_window_of_scikit_image():
    truth, estimate = _pair((21, 21), 255.0, seed=2)
    expected = structural_similarity(
        truth, estimate, win_size=21, use_sample_covariance=False, data_range=255.0
    )
    assert ssim_global(truth, estimate, 255.0) == pytest.approx(expected, abs=1e-12)


def test_ssim_global_of_a_two_pixel_image_is_that_of_the_formula():
    truth, estimate = np.array([[0.0, 2.0]]), np.array([[1.0, 5.0]])
    # means 1 and 3, variances 1 and 4, covariance 2, C1 = .01, C2 = .09
    expected = (6 + 0.01) * (4 + 0.09) / ((1 + 9 + 0.01) * (1 + 4 + 0.09))
    assert ssim_global(truth, estimate, 10.0) == pytest.approx(expected, rel=1e-12)


def test_psnr_equals_scikit_image_and_its_formula():
    truth, estimate = _pair((30, 20), 255.0, seed=3)
    expected = peak_signal_noise_ratio(truth, estimate, data_range=255.0)
    assert psnr(truth, estimate, 255.0) == pytest.approx(expected, rel=1e-12)
    off_by_five = np.full((4, 4), 100.0), np.full((4, 4), 105.0)
    assert psnr(*off_by_five, 255.0) == pytest.approx(20 * math.log10(51), rel=1e-12)


def test_mae_is_the_mean_of_absolute_differences_also_of_unsigned_bytes():
    truth = np.array([[3, 250], [7, 0]], np.uint8)
    estimate = np.array([[5, 240], [7, 4]], np.uint8)
    assert mae(truth, estimate) == 4.0


@pytest.mark.parametrize(
    "metric", [mae, *(lambda t, e, f=f: f(t, e, 255.0) for f in (psnr, ssim_global, ssim_wang))]
)
def test_a_metric_of_many_images_is_that_of_each_alone(metric):
    truth, estimate = _pair((2, 3, 16, 13), 255.0, seed=4)
    together = metric(truth, estimate)
    assert together.shape == (2, 3)
    for i in np.ndindex(2, 3):
        assert together[i] == pytest.approx(metric(truth[i], estimate[i]), rel=1e-12)


def test_a_perfect_estimate_has_infinite_psnr_without_a_warning(recwarn):
    truth, other = _pair((2, 16, 16), 255.0, seed=5)
    estimate = np.stack([truth[0], other[1]])
    values = psnr(truth, estimate, 255.0)
    assert np.isposinf(values[0]) and np.isfinite(values[1])
    assert np.isposinf(values.mean()) and not recwarn.list
    assert ssim_wang(truth, truth, 255.0) == pytest.approx([1, 1], abs=1e-12)
    assert ssim_global(truth, truth, 255.0) == pytest.approx([1, 1], abs=1e-12)


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(InputError, match="11 x 11.* 10 x 64"):
        ssim_wang(np.zeros((10, 64)), np.zeros((10, 64)), 1.0)


def test_mean_and_sd_are_those_of_a_sample_without_what_is_missing():
    assert mean_and_sd([1.0, None, 3.0]) == {"mean": 2.0, "sd": math.sqrt(2), "subjects": 2}
    one, none = mean_and_sd([1.0]), mean_and_sd([None])
    assert (one["mean"], one["subjects"], none["subjects"]) == (1.0, 1, 0)
    assert math.isnan(one["sd"]) and math.isnan(none["mean"]) and math.isnan(none["sd"])
    assert mean_and_sd([math.inf, 1.0])["mean"] == math.inf
