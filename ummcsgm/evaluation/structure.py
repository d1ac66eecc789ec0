"""Whether draws vary as truths do at every scale: power by spatial frequency, and block means.

Scores of single voxels see the mean and the spread of each, not whether neighbours go together: the
mean plus white noise of the right variance passes them all. Here it fails.

All are of one subject and modality, in one unit: draws [K, S, H, W], and mean, truth and brain
[S, H, W] on the network's grid. `mean` is the network's own, of one evaluation: a function of the
seen scans alone. So each ratio below is 1 in expectation for draws of the truth's law, however
wrong the mean is. The mean of the K draws would make it (K - 1) / (K + 1).
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import fft

from ummcsgm.evaluation.calibration import (
    LEVEL,
    bootstrap_interval,
    coverage,
    crps_fair,
    spread_and_error,
    spread_skill,
)
from ummcsgm.inference.draw_statistics import members
from ummcsgm.types import Array

# The inner edges of the bands, in cycles a pixel along any direction. The first band has frequency
# 0, the mean over the brain. The last has no upper end: of 0.5 and above there are diagonals only,
# where the artefacts of patches lie, and left out they would not be seen.
BAND_EDGES = (0.05, 0.1, 0.2, 0.3)
BANDS = ("0-0.05", "0.05-0.1", "0.1-0.2", "0.2-0.3", "0.3 up")
LEAST_BRAIN = 0.5  # of the pixels of a block that counts
SCORES = ("variance", "error", "coverage", "crps", "mae_of_mean", "mse_of_mean")
SUMMARIES = ("spread_skill", "coverage", "crps", "crps_over_mae")


def measure_structure(
    draws: Array, mean: Array, truth: Array, brain: Array, sizes: Sequence[int]
) -> dict:
    """{"power": {"draws", "truth": `power_by_band`}, "blocks": [`block_scores` of each of `sizes`]}
    of one subject: values that JSON has."""
    drawn, true = power_by_band(draws, mean, truth, brain)
    return {
        "power": {"draws": drawn.tolist(), "truth": true.tolist()},
        "blocks": [block_scores(draws, mean, truth, brain, size) for size in sizes],
    }


def power_by_band(draws: Array, mean: Array, truth: Array, brain: Array) -> Array:
    """[2, bands]: the power of draw - mean, averaged over draws, and of truth - mean.

    In squared units, summed over slices: all bands of one row together are the sum over the brain
    of the squared residual. Residuals are 0 outside the brain. The edge of the brain spreads power
    into neighbouring bands, of draws and truth alike.

    Blind to phase, and to where the power is: a Gaussian field of the right spectrum passes, and so
    do draws whose structure is in the wrong place, in all draws the same, or with its sign turned.
    """
    powers = [_power(np.where(brain, draw - mean, 0)) for draw in members(draws)]
    return np.stack([np.mean(powers, axis=0), _power(np.where(brain, truth - mean, 0))])


def _power(residual: Array) -> Array:
    """[bands] sums of |F|^2 / (H W) over the slices and frequencies of a residual [S, H, W]."""
    height, width = residual.shape[-2:]
    power = np.sum(np.square(np.abs(fft.fft2(residual))), axis=0) / (height * width)
    return np.bincount(bands(height, width).ravel(), power.ravel(), len(BANDS))


def bands(height: int, width: int) -> Array:
    """[H, W] the band, 0 to 4, of each frequency of a 2-D transform."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    return np.digitize(radius, BAND_EDGES)


def block_scores(draws: Array, mean: Array, truth: Array, brain: Array, size: int) -> dict:
    """The scores of the draws' `block_means` as predictions of the truth's, as JSON values.

    `size`, the number of `blocks`, and means over them: `variance` of the draws and `error` of
    their mean, for `spread_skill`; `coverage` of the LEVEL interval; fair `crps`; `mae_of_mean` and
    `mse_of_mean`, of the network's own mean. Each is None where no block counts.

    At size 1 they are the scores of voxels. Blind to what happens within a block, to how blocks go
    together, and to the law's shape beyond what the CRPS sees of it.
    """
    images = (np.asarray(values, np.float64) for values in (members(draws), mean, truth))
    drawn, own_mean, true = (block_means(values, brain, size) for values in images)
    if not true.size:
        return {"size": size, "blocks": 0} | dict.fromkeys(SCORES)
    covered, crps = coverage(drawn, true, LEVEL), crps_fair(drawn, true)
    misses = np.abs(own_mean - true), np.square(own_mean - true)
    values = *spread_and_error(drawn, true), *(np.mean(v) for v in (covered, crps, *misses))
    return {"size": size, "blocks": true.size} | dict(zip(SCORES, map(float, values), strict=True))


def block_means(images: Array, brain: Array, size: int) -> Array:
    """[..., B] means over the brain's pixels of blocks of size x size, of images [..., S, H, W].

    Blocks tile each slice from the first row and column of the network's grid; the last ones may
    reach beyond it, where there is no brain. A block counts if LEAST_BRAIN of its size^2 pixels
    are brain. With less, the mean of a few pixels of the rim would count as one of many; with more,
    few blocks of 16 pixels would be left.
    """
    pixels = _block_sums(np.asarray(brain, np.float64), size)
    counts = pixels >= LEAST_BRAIN * size**2
    return _block_sums(np.where(brain, images, 0), size)[..., counts] / pixels[counts]


def _block_sums(images: Array, size: int) -> Array:
    """[..., ceil(H / size), ceil(W / size)] sums over blocks of images [..., H, W]."""
    height, width = images.shape[-2:]
    beyond = [(0, 0)] * (images.ndim - 2) + [(0, -height % size), (0, -width % size)]
    padded = np.pad(images, beyond)
    shape = padded.shape[-2] // size, size, padded.shape[-1] // size, size
    return padded.reshape(*images.shape[:-2], *shape).sum(axis=(-3, -1))


def summarise_structure(subjects: list[dict], count: int) -> dict:
    """{"power": a row for each band, "blocks": a row for each block size}, from
    `measure_structure` of each subject's `count` = K draws.

    A row of power has `band` and `ratio`, the sum over subjects of the draws' power over that of
    the truth's: 1 if draws vary as truths do. A row of blocks has `size`, the `subjects` that have
    a block, and SUMMARIES: the spread-skill ratio, whose moments are averaged over subjects first,
    the means of coverage and CRPS, and that CRPS over the mean absolute error of the network's own
    mean. Each number has the ends of `bootstrap_interval` as _low and _high. nan: nothing counts.
    """
    power = np.array([[s["power"]["draws"], s["power"]["truth"]] for s in subjects])
    columns = ["blocks", *SCORES]
    blocks = np.array([[[row[c] or 0.0 for c in columns] for row in s["blocks"]] for s in subjects])
    blocks[..., 0] = blocks[..., 0] > 0
    sizes = [row["size"] for row in subjects[0]["blocks"]]
    numbers = zip(sizes, np.sum(blocks[..., 0], axis=0).astype(int).tolist(), strict=True)
    return {
        "power": _rows([{"band": band} for band in BANDS], ["ratio"], _power_ratio, power),
        "blocks": _rows(
            [{"size": size, "subjects": number} for size, number in numbers],
            SUMMARIES,
            lambda values: _block_statistics(values, count),
            blocks,
        ),
    }


def _rows(
    rows: list[dict], names: Sequence[str], statistic: Callable[[Array], Array], values: Array
) -> list[dict]:
    """The `rows` with statistic(values) [names, rows] of subjects' values and its interval."""
    low, high = bootstrap_interval(statistic, values)
    for name, *numbers in zip(names, statistic(values), low, high, strict=True):
        for row, *three in zip(rows, *(row.tolist() for row in numbers), strict=True):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), three, strict=True))
    return rows


def _power_ratio(power: Array) -> Array:
    """[1, bands] from the power [S, 2, bands] of draws and truth."""
    drawn, true = np.sum(power, axis=0)
    return np.divide(drawn, true, out=np.full((1, len(true)), np.nan), where=true > 0)


def _block_statistics(blocks: Array, count: int) -> Array:
    """[SUMMARIES, sizes] from values [S, sizes, 1 + SCORES], all 0 where there is no block and
    else with a 1 before them."""
    number, _, _, covered, crps, absolute_error, _ = np.sum(blocks, axis=0).T
    with np.errstate(divide="ignore", invalid="ignore"):
        skill = spread_skill(blocks[..., 1:3], count)
        rows = np.stack([skill, covered / number, crps / number, crps / absolute_error])
    return np.where(np.isfinite(rows), rows, np.nan)
