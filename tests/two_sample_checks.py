"""Fields whose law is known, and what a classifier has to find of them.

`test_two_sample` asserts that they hold, `planted_bugs` that a mistake breaks one of them.
"""

import numpy as np
from scipy.special import ndtr
from scipy.stats import mannwhitneyu

from ummcsgm.evaluation import two_sample

GRID = (48, 40)
ROWS, COLUMNS = np.indices(GRID)
DISC = ((ROWS - 23) / 23) ** 2 + ((COLUMNS - 19) / 19) ** 2 <= 1
BETWEEN = 2 * 1.6449  # standard deviations between the ends of the central 90 %
SLICES = 2


def fields(rng, length, count):
    """[count, H, W] Gaussian fields of variance 1 and correlation exp(-(rows apart + columns
    apart) / length); white noise for length 0."""
    white = rng.normal(size=(count, *GRID))
    if not length:
        return white
    rows, columns = (
        np.linalg.cholesky(np.exp(-np.abs(np.subtract.outer(range(n), range(n))) / length))
        for n in GRID
    )
    return rows @ white @ columns.T


def pairs_of(truth_length, draw_length, subjects, *, shift=0.0, brain=DISC, seed=0, outside=0.0):
    """`Pairs` of fields about a mean that a seen scan tells, two slices a subject."""
    rng, count = np.random.default_rng(seed), SLICES * subjects
    seen = fields(rng, 3.0, count)
    mean = 2 + 0.5 * seen  # not what is outside the brain
    truth = mean + fields(rng, truth_length, count)
    draw = mean + fields(rng, draw_length, count) + shift
    brains = np.broadcast_to(brain, truth.shape)
    truth[~brains], draw[~brains] = -outside, outside  # nobody looks there
    subject = np.repeat(np.arange(subjects), SLICES)
    return two_sample.make_pairs(truth, draw, mean, seen[..., None], brains, subject)


def auc_of(pairs, steps, *address, **options):
    """(AUC, its standard error over subjects) of the classifier."""
    auc, low, high = two_sample.auc(two_sample.classify(pairs, steps, address, **options))
    return auc, (high - low) / BETWEEN


def assert_shift_is_found_as_far_as_it_can_be(subjects, steps, short_of):
    """White noise of which draws are `shift` brighter: the best AUC is Phi(d / sqrt(2)), with
    d = shift x the root of a patch's pixels. More than that is a leak."""
    whole, shift = np.ones(GRID, bool), 1.5 / two_sample.PATCH
    pairs = pairs_of(0, 0, subjects, shift=shift, brain=whole)
    best = ndtr(shift * two_sample.PATCH / np.sqrt(2))
    auc, error = auc_of(pairs, steps, 0)
    assert error < 0.03
    assert best - short_of < auc < best + 3 * error


def assert_same_law_is_not_found(subjects=16, steps=60):
    """Draws of the truth's law have an AUC of 0.5, whatever lies outside the brain."""
    auc, error = auc_of(pairs_of(2.0, 2.0, subjects, outside=5.0), steps, 0)
    assert error < 0.04
    assert abs(auc - 0.5) < 3 * error


def assert_white_noise_is_found(subjects=16, steps=60):
    """White noise of the variance of correlated truths: right voxel by voxel, and found."""
    auc, _ = auc_of(pairs_of(2.0, 0, subjects), steps, 0)
    assert auc > 0.9


def assert_control_does_not_know_subjects(subjects=40, steps=60):
    """Subjects that differ by their levels, which a network could remember: it must not have
    been trained on those it scores. Mean of a few assignments of labels."""
    rng = np.random.default_rng(1)
    levels = np.repeat(rng.normal(size=(6, subjects)), SLICES, axis=1)[..., None, None]
    truth, mean, *seen = levels + 0.3 * rng.normal(size=(6, SLICES * subjects, *GRID))
    brain = np.broadcast_to(DISC, truth.shape)
    subject = np.repeat(np.arange(subjects), SLICES)
    pairs = two_sample.make_pairs(truth, truth, mean, np.stack(seen, -1), brain, subject)
    found = [auc_of(pairs, steps, number, control=True)[0] for number in range(4)]
    assert abs(np.mean(found) - 0.5) < 0.15, found  # subjects are few: 0.09 each


def assert_auc_is_that_of_mann_and_whitney():
    """The AUC is U over its largest value, within folds, with ties."""
    rng = np.random.default_rng(2)
    subject = np.repeat(np.arange(12), 9)
    drawn = rng.uniform(size=len(subject)) < 0.4
    logit, fold = np.round(rng.normal(size=len(subject)) + drawn, 1), subject % 2
    logit += 10 * fold  # networks of two folds need not agree
    scores = two_sample.Scores(np.zeros((len(subject), 3), int), drawn, logit, subject, fold)
    wins, most = 0.0, 0
    for own in (0, 1):
        kinds = [logit[(fold == own) & label] for label in (drawn, ~drawn)]
        wins += mannwhitneyu(*kinds).statistic
        most += len(kinds[0]) * len(kinds[1])
    auc, low, high = two_sample.auc(scores)
    np.testing.assert_allclose(auc, wins / most)
    assert low < auc < high < 1
