"""Metrics along z by hand, and that they see what in-plane metrics do not."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from ummcsgm.evaluation.metrics import mae
from ummcsgm.evaluation.through_plane import coronal_ssim, gradient_scores, lag_one, neighbour_sums
from ummcsgm.types import InputError


def _volume(depth=16, seed=0):
    rng = np.random.default_rng(seed)
    brain = np.zeros((depth, 14, 13), bool)
    brain[2:-2, 3:11, 2:11] = True
    return np.where(brain, rng.uniform(50, 200, brain.shape), 0.0), brain


def test_gradients_are_of_pairs_that_both_have_brain():
    truth = np.array([[1.0, 9.0], [3.0, 9.0], [4.0, 9.0], [99.0, 9.0]])[:, None]
    brain = np.array([[1, 0], [1, 1], [1, 0], [0, 1]], bool)[:, None]
    estimate = np.array([[1.0, 0.0], [0.0, 0.0], [5.0, 7.0], [0.0, 0.0]])[:, None]
    scores = gradient_scores(truth, estimate, brain)
    # pairs 0-1 and 1-2 of the first column: truth 2, 1; estimate -1, 5
    assert scores == {"gradient": 3.0, "gradient_error": 3.5}
    assert gradient_scores(truth, truth, brain)["gradient_error"] == 0
    units = gradient_scores(3 * truth, 3 * estimate, brain)
    assert units == {name: 3 * value for name, value in scores.items()}


def test_gradients_of_unsigned_bytes_do_not_wrap():
    truth = np.array([[[200]], [[10]]], np.uint8)
    scores = gradient_scores(truth, truth, np.ones((2, 1, 1), bool))
    assert scores["gradient"] == 190


def test_coronal_ssim_is_scikit_images_of_each_plane_weighted_by_brain():
    truth, brain = _volume()
    brain[:, 5] &= np.arange(13) < 6  # a plane with less brain than others
    truth = np.where(brain, truth, 0)
    rng = np.random.default_rng(1)
    estimate = truth + rng.normal(0, 20, truth.shape)
    values = [
        structural_similarity(
            truth[:, y],
            np.where(brain, estimate, 0)[:, y],
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255.0,
        )
        for y in range(3, 11)
    ]
    expected = np.average(values, weights=brain.sum((0, 2))[3:11])
    measured = coronal_ssim(truth, estimate, brain, 255.0)
    assert measured == pytest.approx(expected, abs=1e-9)
    wild = np.where(brain, estimate, 1e6)
    assert coronal_ssim(truth, wild, brain, 255.0) == measured
    assert coronal_ssim(truth, truth, brain, 255.0) == pytest.approx(1)


def test_slices_that_disagree_are_seen_along_z_only():
    """Errors of one size in each slice: shared by all slices, or of either sign."""
    truth, brain = np.full((20, 14, 14), 100.0), np.ones((20, 14, 14), bool)
    truth += 30 * np.random.default_rng(2).normal(size=(14, 14))
    shared = truth + 10
    jumping = truth + 10 * (-1.0) ** np.arange(20)[:, None, None]
    np.testing.assert_allclose(mae(truth, shared), mae(truth, jumping))
    scores = [gradient_scores(truth, v, brain) for v in (shared, jumping)]
    assert [s["gradient_error"] for s in scores] == pytest.approx([0, 20])
    ssim = [coronal_ssim(truth, v, brain, 255.0) for v in (shared, jumping)]
    assert ssim[0] > ssim[1] + 0.05


def test_lag_one_by_hand_pooled_over_subjects_within_the_brain():
    residuals = np.array([[1.0, 5.0], [2.0, 5.0], [-1.0, 1.0]])
    brain = np.array([[1, 0], [1, 1], [1, 1]], bool)
    sums = neighbour_sums(residuals, brain)
    assert sums.tolist() == [2 - 2 + 5, 1 + 4 + 25, 4 + 1 + 1]
    assert lag_one(sums) == pytest.approx(5 / 180**0.5)
    pooled = lag_one(np.stack([sums, [1.0, 6.0, 3.0]]))
    assert pooled == pytest.approx(6 / (36 * 9) ** 0.5)


def test_what_has_no_neighbours_or_brain_is_refused():
    truth, brain = _volume()
    single = np.zeros_like(brain)
    single[4] = True
    for ask in (
        lambda: gradient_scores(truth, truth, single),
        lambda: neighbour_sums(truth, single),
    ):
        with pytest.raises(InputError, match="no two neighbouring slices"):
            ask()
    with pytest.raises(InputError, match="the brain is empty"):
        coronal_ssim(truth, truth, brain & False, 255.0)
    with pytest.raises(InputError, match="11 x 11.* 10 x 13"):
        coronal_ssim(truth[:10], truth[:10], brain[:10], 255.0)
