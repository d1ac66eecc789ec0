"""Gaussian fields of known spectrum or covariance, and what their structural scores have to be.

`test_structure` asserts that they hold, `planted_bugs` that a mistake breaks one of them. A number
may be off by DEVIATIONS of its standard errors, which are known or measured over subjects.
"""

import numpy as np
from scipy import fft

from ummcsgm.evaluation import structure

DEVIATIONS = 4.5
GRID = (48, 40)
BETWEEN = 2 * 1.6449  # standard deviations between the ends of the central 90 %
ROWS, COLUMNS = np.indices(GRID)
DISC = ((ROWS - 23) / 21) ** 2 + ((COLUMNS - 19) / 17) ** 2 <= 1
STEEP, FLAT = 0.05, 0.2  # the corner frequencies of two spectra, in cycles a pixel


def radius():
    """[H, W] cycles a pixel of each frequency, counted one by one."""
    sides = [np.array([min(k, n - k) / n for k in range(n)]) for n in GRID]
    return np.sqrt(sides[0][:, None] ** 2 + sides[1] ** 2)


def inside(band):
    """[H, W] bool: the frequencies of a band, 0 to 4."""
    low = (0, 0.05, 0.1, 0.2, 0.3)[band]
    high = (0.05, 0.1, 0.2, 0.3, np.inf)[band]
    return (radius() >= low) & (radius() < high)


def spectrum(corner, variance=1.0):
    """[H, W] that falls from `corner` on, of fields of this variance: its mean."""
    power = 1 / (1 + (radius() / corner) ** 2) ** 1.5
    return variance * power / power.mean()


def fields(rng, spectral_density, *shape):
    """[*shape, H, W] periodic Gaussian fields with E|F|^2 / (H W) = `spectral_density`."""
    noise = fft.fft2(rng.normal(size=(*shape, *GRID)))
    return fft.ifft2(noise * np.sqrt(spectral_density)).real


def correlated(rng, rho, *shape):
    """[*shape, H, W] fields of covariance rho^(rows apart + columns apart)."""
    rows, columns = (
        np.linalg.cholesky(rho ** np.abs(np.subtract.outer(range(n), range(n)))) for n in GRID
    )
    return rows @ rng.normal(size=(*shape, *GRID)) @ columns.T


def assert_near(values, expected):
    """The mean over subjects [S, ...] is the expected one, as far as they can tell."""
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    assert np.all(error < 0.1 * np.abs(expected)), "too few subjects to tell anything"
    assert np.all(np.abs(np.mean(values, axis=0) - expected) < DEVIATIONS * error)


def assert_power_of_a_spectrum():
    """Over the whole grid the power of a band is the sum of the spectrum in it, and its variance
    twice the sum of squares: exact for a periodic Gaussian field."""
    rng, slices, draws = np.random.default_rng(0), 200, 3
    drawn_law, true_law = spectrum(FLAT), spectrum(STEEP, 2.0)
    mean = fields(rng, spectrum(0.1, 9.0), slices)
    drawn = mean + fields(rng, drawn_law, draws, slices)
    truth = mean + fields(rng, true_law, slices)
    measured = structure.power_by_band(drawn, mean, truth, np.ones(truth.shape, bool))
    for row, law, number in zip(measured, (drawn_law, true_law), (draws, 1), strict=True):
        for band, power in enumerate(row):
            expected = slices * law[inside(band)].sum()
            error = np.sqrt(2 * slices / number * np.square(law[inside(band)]).sum())
            assert error < 0.04 * expected
            assert abs(power - expected) < DEVIATIONS * error
    ratios = [drawn_law[inside(b)].sum() / true_law[inside(b)].sum() for b in range(5)]
    summary = structure.summarise_structure([entry_of(measured)], draws)["power"]
    np.testing.assert_allclose([row["ratio"] for row in summary], ratios, rtol=0.15)


def entry_of(power):
    """`measure_structure` of a subject without blocks."""
    empty = {"size": 1, "blocks": 0} | dict.fromkeys(structure.SCORES)
    return {"power": dict(zip(("draws", "truth"), power.tolist(), strict=True)), "blocks": [empty]}


def assert_power_within_the_brain():
    """E|F|^2 of a masked field: the transform of its covariance times the mask's own."""
    rng, law = np.random.default_rng(1), spectrum(STEEP)
    own = fft.ifft2(np.abs(fft.fft2(DISC)) ** 2).real
    power = fft.fft2(fft.ifft2(law).real * own).real / law.size
    expected = np.array([power[inside(band)].sum() for band in range(5)])
    measured = []
    for _ in range(300):
        mean, truth = rng.normal(size=(1, *GRID)), fields(rng, law, 1)
        truth, brain = truth + mean, DISC[None]
        truth[~brain], mean[~brain] = 1e3, -1e3  # nobody looks there
        found = structure.power_by_band(fields(rng, law, 2, 1) + mean, mean, truth, brain)
        squares = np.square(truth - mean)[brain].sum()
        np.testing.assert_allclose(found[1].sum(), squares)
        measured.append(found)
    assert_near(np.array(measured), np.stack([expected, expected]))


def summary_of(law, count, subjects=60, off=0.0):
    """`summarise_structure` of subjects whose truths are their mean plus fields of the covariance
    rho^distance and the draws of `law(rng, K, S)`. The network's mean is `off` by a field."""
    rng, brain, found = np.random.default_rng(2), np.stack([DISC, DISC]), []
    for _ in range(subjects):
        mean = fields(rng, spectrum(0.1, 25.0), 2)
        truth = mean + correlated(rng, 0.9, 2)
        known = mean + off * fields(rng, spectrum(STEEP), 2)
        drawn = mean + law(rng, count, 2)
        found.append(structure.measure_structure(drawn, known, truth, brain, (1, 2, 4, 8, 16)))
    return structure.summarise_structure(found, count)


def assert_row(row, **expected):
    """Numbers of a row are the expected ones, as far as their intervals tell."""
    for name, value in expected.items():
        error = (row[f"{name}_high"] - row[f"{name}_low"]) / BETWEEN
        assert 0 < error < 0.1 * value, f"{name} is too uncertain to tell anything"
        assert abs(row[name] - value) < DEVIATIONS * error, (name, row)


def law_of_truth(rng, count, slices):
    return correlated(rng, 0.9, count, slices)


def white_noise(rng, count, slices):
    return rng.normal(size=(count, slices, *GRID))


def assert_right_law_passes(count):
    """Draws of the truth's law, about the right mean: all ratios are 1, the CRPS is that of a
    normal law, 1 / sqrt(2) of the absolute error of its mean."""
    found = summary_of(law_of_truth, count)
    for row in found["power"]:
        assert_row(row, ratio=1.0)
    for row in found["blocks"]:
        scale = np.sqrt(mean_block_variance(row["size"], 0.9))
        assert_row(row, spread_skill=1.0, coverage=0.9, crps_over_mae=np.sqrt(0.5))
        assert_row(row, crps=scale / np.sqrt(np.pi))
        assert row["subjects"] == 60


def assert_right_law_passes_about_a_wrong_mean():
    """Power is about any mean that knows nothing of the truth; so are spread and coverage."""
    found = summary_of(law_of_truth, 2, off=1.0)
    for row in found["power"]:
        assert_row(row, ratio=1.0)
    for row in found["blocks"]:
        assert_row(row, spread_skill=1.0, coverage=0.9)
        assert row["crps_over_mae"] < 0.65


def counted_blocks(size):
    """The pixels [n, 2] of brain of each block of DISC that is brain by half."""
    pixels = np.argwhere(DISC)
    corners = pixels // size
    blocks = [pixels[(corners == corner).all(1)] for corner in np.unique(corners, axis=0)]
    return [block for block in blocks if 2 * len(block) >= size**2]


def mean_block_variance(size, rho):
    """The mean over blocks of the variance of a block's mean: that of covariances within it."""
    return np.mean(
        [
            np.mean(rho ** np.abs(block[:, None] - block[None]).sum(-1))
            for block in counted_blocks(size)
        ]
    )


def assert_variance_of_block_means(sizes=(1, 2, 4, 8, 16)):
    """Of truths and of draws; of a whole block (sum over d of (n - |d|) rho^|d| / n^2)^2."""
    rng, rho = np.random.default_rng(4), 0.8
    for size in sizes:
        blocks = counted_blocks(size)
        inner = max(blocks, key=len)
        assert len(inner) == size**2
        d = np.arange(1 - size, size)
        whole = (np.sum((size - abs(d)) * rho ** abs(d)) / size**2) ** 2
        np.testing.assert_allclose(
            np.mean(rho ** np.abs(inner[:, None] - inner[None]).sum(-1)), whole
        )
        truth, drawn = correlated(rng, rho, 400), correlated(rng, rho, 4, 400)
        truth, brain, mean = truth[:, None], DISC[None], np.zeros((1, *GRID))
        scores = [
            structure.block_scores(drawn[:, k, None], mean, truth[k], brain, size)
            for k in range(400)
        ]
        assert {score["blocks"] for score in scores} == {len(blocks)}
        measured = [[score[name] for name in ("mse_of_mean", "variance")] for score in scores]
        assert_near(np.array(measured), mean_block_variance(size, rho))


def assert_blocks_by_hand():
    """Blocks of 2 of a 3 x 5 image; garbage outside the brain is not looked at."""
    brain = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 1]], bool)[None]
    images = np.arange(15.0).reshape(1, 3, 5)
    images[~brain] = np.nan
    found = structure.block_means(np.stack([images, -images]), brain, 2)
    # (0 + 1 + 5) / 3, and (10 + 11) / 2 half beyond the grid; 3, 4, 12 and 14 are alone.
    np.testing.assert_array_equal(found, [[2, 10.5], [-2, -10.5]])
    np.testing.assert_array_equal(structure.block_means(images, brain, 1), images[brain])
