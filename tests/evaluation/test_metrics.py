"""Metrics against scikit-image and hand calculation; the profile against its words."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ummcsgm.evaluation.metrics import (
    TABLE1,
    mae,
    psnr,
    score,
    scored_slices,
    ssim_global,
    ssim_wang,
)
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


def test_brats_volumes_are_scored_on_slices_50_to_109_whatever_the_brain_area():
    brain = np.zeros((155, 20, 20), bool)
    brain[:, 10, 10] = True
    assert scored_slices(brain, TABLE1).tolist() == list(range(50, 110))
    brain[60] = False
    expected = [z for z in range(50, 110) if z != 60]
    assert scored_slices(brain, TABLE1).tolist() == expected


def test_other_volumes_are_scored_where_the_brain_covers_more_than_a_fifth():
    brain = np.zeros((4, 10, 10), bool)
    brain[1].flat[:20] = True
    brain[2].flat[:21] = True
    brain[3].flat[:100] = True
    assert scored_slices(brain, TABLE1).tolist() == [2, 3]


@pytest.mark.parametrize("shape", [(155, 8, 8), (30, 8, 8), (0, 8, 8)])
def test_a_volume_without_a_slice_to_score_is_refused(shape):
    with pytest.raises(InputError, match=f"no slice.*umm-csgm-table1.*{shape[0]} slic"):
        scored_slices(np.zeros(shape, bool), TABLE1)


def _subject(seed=6):
    """A truth with negative and very bright voxels, its brain, slices, an estimate."""
    rng = np.random.default_rng(seed)
    brain = np.zeros((6, 24, 20), bool)
    brain[:, 4:20, 3:17] = True
    truth = np.where(brain, rng.normal(700, 300, brain.shape), 0.0)
    truth[0, 10, 5:9] = 90000.0, 80000.0, 4000.0, -50.0
    slices = np.array([1, 2, 4])
    estimate = truth[slices] + rng.normal(0, 100, (3, 24, 20)) * [[[1]], [[2]], [[5]]]
    return truth, estimate, brain, slices


def test_the_profile_scores_as_its_words_say():
    truth, estimate, brain, slices = _subject()
    top = np.percentile(truth[brain], 99.9)
    expected = {"psnr": [], "ssim_global": [], "ssim_wang": [], "mae": []}
    for z, drawn in zip(slices, estimate, strict=True):
        a = (truth[z] / top * 255).clip(0, 255)
        b = np.where(brain[z], drawn / top * 255, 0).clip(0, 255)
        expected["mae"].append(np.abs(a - b).sum() / (24 * 20))
        mse = ((a - b) ** 2).sum() / (24 * 20)
        expected["psnr"].append(20 * np.log10(255 / np.sqrt(mse)))
        expected["ssim_global"].append(ssim_global(a, b, 255))
        gaussian = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        wang = structural_similarity(a, b, data_range=255, **gaussian)
        expected["ssim_wang"].append(wang)
    scores = score(truth, estimate, brain, slices, TABLE1)
    assert list(scores) == list(expected)
    for name, values in expected.items():
        assert isinstance(scores[name], float)
        assert scores[name] == pytest.approx(np.mean(values), rel=1e-9), name


def test_what_is_estimated_outside_the_brain_does_not_count():
    truth, estimate, brain, slices = _subject()
    wild = np.where(brain[slices], estimate, 1e6)
    plain = score(truth, estimate, brain, slices, TABLE1)
    assert score(truth, wild, brain, slices, TABLE1) == plain


def test_units_cancel_and_a_global_error_of_scale_does_not():
    truth, _, brain, slices = _subject()
    perfect = truth[slices]
    assert score(3 * truth, 3 * perfect, brain, slices, TABLE1)["mae"] == 0
    assert score(truth, perfect * 1.3, brain, slices, TABLE1)["mae"] > 0.2
    plain = score(truth, perfect * 1.3, brain, slices, TABLE1)
    scaled = score(7 * truth, 7 * perfect * 1.3, brain, slices, TABLE1)
    assert scaled == pytest.approx(plain, rel=1e-9)


def test_values_beyond_the_window_are_clipped_on_both_sides():
    truth, _, brain, slices = _subject()
    drawn = truth[slices].copy()
    truth[slices[0], 5, 5], drawn[0, 5, 5] = -10.0, -900.0
    truth[slices[0], 5, 6], drawn[0, 5, 6] = 89000.0, 999999.0
    assert score(truth, drawn, brain, slices, TABLE1)["mae"] == 0


def test_one_perfect_slice_makes_the_mean_psnr_infinite():
    truth, estimate, brain, slices = _subject()
    estimate[1] = truth[slices[1]]
    assert score(truth, estimate, brain, slices, TABLE1)["psnr"] == math.inf


def test_a_score_of_wrong_input_is_refused_in_words():
    truth, estimate, brain, slices = _subject()
    with pytest.raises(InputError, match="no slice"):
        score(truth, estimate[:0], brain, slices[:0], TABLE1)
    with pytest.raises(InputError, match=r"\(3, 24, 20\).*\(1, 24, 20\)"):
        score(truth, estimate[:1], brain, slices, TABLE1)
    with pytest.raises(InputError, match="percentile over the brain is 0"):
        score(truth * 0, estimate, brain, slices, TABLE1)
    with pytest.raises(InputError, match="percentile over the brain is 0"):
        score(truth, estimate, brain & False, slices, TABLE1)
