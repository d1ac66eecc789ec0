"""Which scan would help most, where every conditional of four modalities is known."""

import numpy as np
import pytest

from ummcsgm.inference.acquisition_value import expected_gains, gains_table
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.subject_posterior import SubjectPosterior
from ummcsgm.types import Estimate, InputError

NAMES = ("flair", "t1", "t1c", "t2")
MEAN = np.array([0.5, 0.6, 0.4, 0.7])
# t1 and t1c hang together, flair and t2 do, and the pairs hardly.
COVARIANCE = np.array(
    [[1.0, 0.1, 0.2, 0.9], [0.1, 0.5, 0.6, 0.1], [0.2, 0.6, 2.0, 0.2], [0.9, 0.1, 0.2, 1.2]]
)


def conditional(missing):
    """(weights, covariance) of what is missing, given what is seen."""
    a, b = np.flatnonzero(missing), np.flatnonzero(~missing)
    if not len(b):
        return np.zeros((len(a), 0)), COVARIANCE
    weights = COVARIANCE[np.ix_(a, b)] @ np.linalg.inv(COVARIANCE[np.ix_(b, b)])
    return weights, COVARIANCE[np.ix_(a, a)] - weights @ COVARIANCE[np.ix_(b, a)]


def mean_answer(images, missing):
    (absent,) = np.unique(missing, axis=0)
    weights, _ = conditional(absent)
    answer = images.astype(np.float64).copy()
    seen = images[..., ~absent] - MEAN[~absent]
    answer[..., absent] = MEAN[absent] + seen @ weights.T
    return Estimate(answer, None)


def draw_answer(images, missing, addresses, told):
    (absent,) = np.unique(missing, axis=0)
    _, covariance = conditional(absent)
    generator = np.random.default_rng(int(addresses[0, 2]))
    noise = generator.normal(size=(*images.shape[:3], int(absent.sum())))
    answer = told.mean.copy()
    answer[..., absent] += noise @ np.linalg.cholesky(covariance).T
    return answer


def draw_answers(images, missing, addresses, told):
    return (draw_answer(images, missing, own, told) for own in addresses)


def asked(missing):
    generator = np.random.default_rng(1)
    images = generator.multivariate_normal(MEAN, COVARIANCE, size=(3, 40, 40))
    images[..., missing] = 0
    return SubjectInputs("P1", np.arange(3), images, missing)


BRAIN = np.ones((3, 40, 40), bool)


@pytest.mark.parametrize("seen", NAMES)
def test_the_expected_drop_is_that_of_the_joint_law(seen):
    missing = np.array([name != seen for name in NAMES])
    posterior = SubjectPosterior(mean_answer, draw_answers)
    gains = expected_gains(posterior, asked(missing), BRAIN, NAMES, 24)
    _, covariance = conditional(missing)
    absent = np.flatnonzero(missing)
    exact = {}
    for gain in gains:
        channel = NAMES.index(gain.acquired)
        after_missing = missing.copy()
        after_missing[channel] = False
        _, after = conditional(after_missing)
        left = dict(zip(np.flatnonzero(after_missing), np.diag(after), strict=True))
        for place, other in enumerate(absent):
            before = covariance[place, place]
            drop = before - left.get(other, 0.0)
            assert gain.before[NAMES[other]] == pytest.approx(before, rel=0.03)
            assert gain.drop[NAMES[other]] == pytest.approx(drop, rel=0.05, abs=0.005)
        total = np.trace(covariance)
        exact[gain.acquired] = (total - sum(left.values())) / total
        assert gain.share == pytest.approx(exact[gain.acquired], abs=0.02)
    order = [gain.acquired for gain in gains]
    assert order == sorted(exact, key=exact.get, reverse=True)


def test_a_scan_tells_all_of_itself_and_its_row_says_of_whom():
    missing = np.array([True, False, False, True])
    posterior = SubjectPosterior(mean_answer, draw_answers)
    gains = expected_gains(posterior, asked(missing), BRAIN, NAMES, 2)
    titles, *rows = gains_table(gains)
    assert titles == ("acquire", "all", "flair", "t2")
    for name, _, *shares in rows:
        assert shares[("flair", "t2").index(name)] == "1.000"


def test_without_any_variance_there_is_no_advice():
    missing = np.array([True, False, False, True])

    def alike_in_flair(images, missing, addresses, estimate):
        for draw in draw_answers(images, missing, addresses, estimate):
            yield np.where(np.arange(4) == 0, estimate.mean, draw)

    posterior = SubjectPosterior(mean_answer, alike_in_flair)
    with pytest.raises(InputError, match="draws of flair are alike"):
        expected_gains(posterior, asked(missing), BRAIN, NAMES, 3)
