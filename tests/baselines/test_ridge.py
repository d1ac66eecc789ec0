"""The regression floors against direct least squares on the voxels themselves."""

from itertools import product

import numpy as np
import pytest

from ummcsgm.baselines.ridge import (
    add_images,
    empty_normal_equations,
    fit_normal_equations,
    select_normal_equations,
    solve_ridge,
)
from ummcsgm.types import InputError

PATTERNS = [missing for missing in product((False, True), repeat=4) if any(missing)]
# x0 x0 before x0 x1: written out, so that the order is not taken from the module
PAIRS = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]


def _fit(training):
    """The normal equations of complete subjects."""
    sets = [((True,) * images.shape[-1], images) for images in training]
    fitted = fit_normal_equations(sets)
    (present,) = fitted
    return select_normal_equations(fitted, present)


def _images(seed=0, slices=3):
    """Correlated intensities [S, 9, 8, 4] with background and zeros in the brain."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, 1, (4, 4))
    images = 0.5 + 0.2 * rng.normal(0, 1, (slices, 9, 8, 4)) @ mixing
    images[:, :3] = 0
    images[:, 4, :4, 1:] = 0
    return images


def _design(voxels, missing, degree):
    seen = [m for m in range(4) if not missing[m]]
    columns = [voxels[..., m] for m in seen]
    if degree == 2:
        pairs = (p for p in PAIRS if not any(missing[m] for m in p))
        columns += [voxels[..., i] * voxels[..., j] for i, j in pairs]
    return np.stack(columns, -1) if columns else np.zeros((*voxels.shape[:-1], 0))


def _direct(images, missing, degree, penalty):
    """Ridge by augmented least squares on standardised voxels, the textbook way."""
    voxels = images[(images != 0).any(-1)]
    design, target = _design(voxels, missing, degree), voxels[:, list(missing)]
    mean, std = design.mean(0), design.std(0)
    scaled, size = (design - mean) / std, design.shape[1]
    rows = np.concatenate([scaled, np.sqrt(penalty * len(voxels)) * np.eye(size)])
    wanted = target - target.mean(0)
    wanted = np.concatenate([wanted, np.zeros((size, target.shape[1]))])
    weights = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    new = (_design(images, missing, degree) - mean) / std
    return target.mean(0) + new @ weights


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_one_pass_solves_every_missing_pattern_as_a_direct_solve(degree, penalty):
    images = _images()
    equations = _fit([images])
    for missing in PATTERNS:
        filled = solve_ridge(equations, missing, degree, penalty).predict(images)
        seen = [m for m in range(4) if not missing[m]]
        inside = (images[..., seen] != 0).any(-1) if seen else np.ones(images.shape[:3])
        expected = _direct(images, missing, degree, penalty) * inside[..., None]
        np.testing.assert_allclose(filled[..., list(missing)], expected, atol=1e-9)
        np.testing.assert_array_equal(filled[..., seen], images[..., seen])


def test_an_exactly_quadratic_relation_is_recovered_on_new_voxels():
    def relation(images):
        a, b, c = (images[..., m] for m in (0, 2, 3))
        return 0.3 - a + 2 * b * b - 1.5 * a * c + 0.7 * b * c

    rng = np.random.default_rng(1)
    training, new = rng.uniform(0.1, 1, (2, 4, 12, 12, 4))
    training[..., 1] = relation(training)
    missing = (False, True, False, False)
    filled = solve_ridge(_fit([training]), missing, 2, 0.0).predict(new)
    np.testing.assert_allclose(filled[..., 1], relation(new), atol=1e-9)
    linear = solve_ridge(_fit([training]), missing, 1, 0.0).predict(new)
    assert np.abs(linear[..., 1] - relation(new)).mean() > 0.01


def test_normal_equations_do_not_depend_on_how_the_slices_are_grouped():
    images = _images(slices=5)
    whole, parts = _fit([images]), _fit([images[:2], images[2:]])
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-13)
    assert parts.count == whole.count == 5 * 6 * 8 == whole.gram[0, 0]
    assert whole.gram.dtype == np.float64
    np.testing.assert_allclose(whole.gram[0, 1:5], images.sum((0, 1, 2)), rtol=1e-12)


def test_adding_images_leaves_the_normal_equations_it_started_from_as_they_were():
    start = empty_normal_equations(4)
    add_images(start, _images())
    assert start.count == 0 and not start.gram.any()


def test_single_precision_images_are_summed_in_double_precision():
    images = (1000 + _images(slices=1)).astype(np.float32)
    equations = _fit([images] * 50)
    exact = 50 * (images.astype(np.float64)[..., 0] ** 4).sum()
    assert equations.gram[5, 5] == pytest.approx(exact, rel=1e-12)


def test_values_at_the_missing_modalities_are_not_read():
    images, missing = _images(), (True, False, True, False)
    regression = solve_ridge(_fit([images]), missing, 2, 1e-3)
    garbled = images.copy()
    garbled[..., [0, 2]] = np.nan
    np.testing.assert_array_equal(regression.predict(garbled), regression.predict(images))


def test_background_stays_zero_and_a_voxel_with_one_zero_does_not():
    images, missing = _images(), (False, False, False, True)
    filled = solve_ridge(_fit([images]), missing, 1, 0.0).predict(images)
    assert not filled[:, :3].any()
    assert (filled[:, 4, :4, 3] != 0).all()


def test_with_nothing_seen_the_prediction_is_the_mean_over_the_brain():
    images = _images()
    filled = solve_ridge(_fit([images]), (True,) * 4, 2, 5.0).predict(images * 0)
    mean = images[:, 3:].mean((0, 1, 2))
    np.testing.assert_allclose(filled, np.broadcast_to(mean, filled.shape), rtol=1e-12, atol=1e-12)


def test_with_nothing_missing_the_images_come_back():
    images = _images()
    regression = solve_ridge(_fit([images]), (False,) * 4, 2, 0.0)
    np.testing.assert_array_equal(regression.predict(images), images)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_penalty_means_the_same_in_other_units_and_with_more_voxels(degree):
    images, missing, units = _images(), (True, False, False, False), [9, 0.2, 50, 3.0]
    plain = solve_ridge(_fit([images]), missing, degree, 0.3).predict(images)
    other = solve_ridge(_fit([images * units] * 3), missing, degree, 0.3)
    np.testing.assert_allclose(other.predict(images * units), plain * units, atol=1e-8)


def test_an_infinite_penalty_leaves_the_mean_since_the_intercept_is_free():
    images, missing = _images(), (True, False, False, False)
    filled = solve_ridge(_fit([images]), missing, 1, 1e12).predict(images)
    np.testing.assert_allclose(filled[:, 5:, :, 0], images[:, 3:, :, 0].mean())


def test_a_constant_or_repeated_modality_does_not_break_the_solve():
    images = _images()
    images[..., 3] = images[..., 2]
    images[..., 1] = np.where((images != 0).any(-1), 0.7, 0)
    alone = solve_ridge(_fit([images[..., [0, 2]]]), (True, False), 1, 0.0)
    filled = solve_ridge(_fit([images]), (True, False, False, False), 1, 0.0)
    expected = alone.predict(images[..., [0, 2]])[:, 5:, :, 0]
    np.testing.assert_allclose(filled.predict(images)[:, 5:, :, 0], expected, atol=1e-9)


def test_predictions_have_the_precision_of_the_images_which_stay_as_they_are():
    images = _images().astype(np.float32)
    before = images.copy()
    regression = solve_ridge(_fit([images]), (True, False, False, False), 2, 0.0)
    assert regression.predict(images).dtype == np.float32
    np.testing.assert_array_equal(images, before)


def test_arguments_out_of_range_are_refused():
    equations, missing = _fit([_images()]), (True, False, False, False)
    with pytest.raises(InputError, match="2 modalities.*have 4"):
        solve_ridge(equations, missing[:2], 1, 0.0)
    with pytest.raises(InputError, match="degree is 3"):
        solve_ridge(equations, missing, 3, 0.0)
    with pytest.raises(InputError, match="penalty is -1"):
        solve_ridge(equations, missing, 1, -1.0)
    with pytest.raises(InputError, match="all training images are zero"):
        solve_ridge(_fit([_images() * 0]), missing, 1, 0.0)
    with pytest.raises(InputError, match="there are none"):
        _fit([])
    with pytest.raises(InputError, match="3 modalities.*with 4"):
        add_images(equations, _images()[..., :3])


def test_subjects_that_lack_what_is_needed_are_left_out():
    """A modality that is all 0 is not fitted; the subjects that have all of it add up."""
    rng = np.random.default_rng(0)
    first, second, third = (rng.uniform(0.2, 1, (1, 8, 8, 3)) for _ in range(3))
    second[..., 2], third[..., 0] = 0, 0
    sets = [((True, True, True), first), ((True, True, False), second)]
    fitted = fit_normal_equations([*sets, ((False, True, True), third)])
    missing = (False, True, True)  # the second is predicted from the first
    equations = select_normal_equations(fitted, (True, True, False))
    both = np.concatenate([first, second])
    expected = solve_ridge(_fit([both]), missing, 2, 1e-3).predict(both)[..., 1]
    found = solve_ridge(equations, missing, 2, 1e-3).predict(both)[..., 1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert select_normal_equations(fitted, (True, True, True)).count == 64
    del fitted[True, True, True]
    assert select_normal_equations(fitted, (True, True, True)) is None
