"""K draws of a missing modality: are they calibrated.

All numbers are of the brain's voxels on the network's grid, in grey levels as those of
the table but not clipped: the laws of means and variances hold as they are.
"""

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.evaluation.calibration import (
    LEVEL,
    bootstrap_interval,
    coverage,
    coverage_of_ranks,
    crps_fair,
    energy_score,
    law_of_draws,
    rank_histogram,
    reliability,
    reliability_of,
    spread_and_error,
    spread_skill,
    uniformity,
    within,
)
from ummcsgm.evaluation.lesions import score_lesions
from ummcsgm.evaluation.metrics import group_rows
from ummcsgm.evaluation.structure import measure_structure, summarise_structure
from ummcsgm.evaluation.subject import EvaluatedSubject, SubjectSlices
from ummcsgm.inference.predictor import slice_addresses
from ummcsgm.types import Array, Estimate, InputError, Missing

SAMPLER = "warm"
EDGES = np.geomspace(0.5, 32, 13) ** 2  # variances: one for all, so that sums add up
SCALARS = ("mae_of_mean", "mse_of_mean", "crps", "variance", "error")
SCALARS += ("coverage", "coverage_of_ranks", "energy")
SHOWN_DRAWS = 3  # in a picture
PATTERN = ("missing", "modality")  # the columns that a summary is of
CURVE = ("expected", "measured", "low", "high")
MIN_BIN_SHARE = 0.002  # of all voxels: a reliability curve leaves out smaller bins


def measure_draws(
    evaluated: EvaluatedSubject,
    z: Array,
    estimate: Estimate,
    sample: Callable,
    options: EvaluationOptions,
) -> tuple[Array, Array, list[dict]]:
    """(first draw, mean of the draws, each [Q, S, H, W, M], records).

    options.draws draws of the slices `z` for every missing pattern, about the `estimate`
    [Q, S, H, W, M] of these slices. A record, of a pattern and a modality, has the
    numbers of `score_draws`, and where one modality is scored those of `score_lesions`.
    """
    modalities, slices = evaluated.modalities, evaluated.slices(z)
    first, average = estimate.mean.copy(), estimate.mean.copy()
    records = []
    labels = evaluated.labels | {"slices": len(z), "method": SAMPLER, "draws": options.draws}
    for pattern, missing in enumerate(evaluated.missing):
        known = estimate.select_row(pattern)
        draws = draw(sample, slices, missing, known, options.draws)
        first[pattern], average[pattern] = draws[0], np.mean(draws, axis=0)
        scored = evaluated.scored[pattern]
        scores = score_draws(slices, scored, known, draws, options)
        for channel, numbers in scores.items():
            names = {"missing": evaluated.pattern_name(missing), "modality": modalities[channel]}
            records.append(labels | names | numbers)
            if len(scores) == 1:
                records[-1] |= score_lesions(evaluated, slices, channel, known.mean, draws)
    return first, average, records


def draws_pictures(
    evaluated: EvaluatedSubject, z: Array, estimate: Estimate, sample: Callable, count: int
) -> dict[str, Array]:
    """Pictures [M, ...] of the slice `z` [1]: `draws_picture` of `count` draws, of each modality
    that alone is scored. `estimate` [Q, 1, H, W, M] is of that slice."""
    slices, pictures = evaluated.slices(z), {}
    for pattern in np.flatnonzero(evaluated.scored.sum(axis=1) == 1):
        known, missing = estimate.select_row(pattern), evaluated.missing[pattern]
        draws = draw(sample, slices, missing, known, count)
        channel = int(np.argmax(evaluated.scored[pattern]))
        pictures[channel] = draws_picture(slices, channel, draws)
    return stack_pictures(pictures, len(evaluated.modalities))


def draw(
    sample: Callable, slices: SubjectSlices, missing: Array, estimate: Estimate, count: int
) -> Array:
    """[K, S, H, W, M] `count` draws for one missing pattern [M]; all start from the one
    `estimate` [S, H, W, M].

    Draw k of a slice has the address (subject, slice, k), whatever `count` is.
    """
    addresses = [slice_addresses(slices.name, slices.z, draw=k) for k in range(count)]
    missing = np.tile(missing, (len(slices.z), 1))
    return np.stack([*sample(slices.images, missing, np.stack(addresses), estimate)])


def score_draws(
    slices: SubjectSlices,
    scored: Missing,
    estimate: Estimate,
    draws: Array,
    options: EvaluationOptions,
) -> dict[int, dict]:
    """By channel of `scored` [M], the numbers of the draws [K, S, H, W, M] of one pattern.

    `mae_of_mean` (the CRPS of the mean) and `mse_of_mean` are those of the network's
    `estimate` [S, H, W, M]; `predicted` is of its variance, or None; the others are of the
    draws. `energy` is of all scored channels together, None of one; `structure` is
    `measure_structure` of each.
    """
    channels = np.flatnonzero(scored)
    grey = slices.grey[channels]
    brain = np.repeat(slices.brain[..., None], len(channels), axis=-1)
    truth = slices.images[..., channels] * grey
    draws, voxels = within(brain, draws[..., channels] * grey, truth)
    means = (estimate.mean[..., channels] * grey)[brain].astype(np.float64)
    draws = draws.reshape(len(draws), -1, len(channels))
    truth, means = (v.reshape(-1, len(channels)) for v in (voxels, means))
    energy = float(np.mean(energy_score(draws, truth))) if len(channels) > 1 else None
    scores = {}
    for column, channel in enumerate(channels):
        address = [options.seed, zlib.crc32(slices.name.encode()), int(channel), *channels]
        generator = np.random.default_rng(address)
        arrays = draws[..., column], means[:, column], truth[:, column]
        error = means[:, column] - truth[:, column]
        images = (_put_back(values, slices.brain) for values in arrays)
        scores[int(channel)] = {
            "voxels": len(error),
            "mae_of_mean": float(np.mean(np.abs(error))),
            "mse_of_mean": float(np.mean(np.square(error))),
            "predicted": _predicted(slices, estimate, int(channel), error),
            **_numbers(generator, *arrays),
            "energy": energy,
            "structure": measure_structure(*images, slices.brain, options.block_sizes),
        }
    return scores


def _put_back(voxels: Array, brain: Array) -> Array:
    """[..., S, H, W] images, 0 outside the brain, of its voxels [..., N]."""
    images = np.zeros((*voxels.shape[:-1], *brain.shape))
    images[..., brain] = voxels
    return images


def _predicted(
    slices: SubjectSlices, estimate: Estimate, channel: int, error: Array
) -> dict | None:
    """Of the predicted variance of one modality, if there is one: its mean, and the sums
    of `reliability_of` in the bins of EDGES. `error` [N] is that of the mean."""
    if estimate.variance is None:
        return None
    variance = estimate.variance[..., channel][slices.brain].astype(np.float64)
    variance *= slices.grey[channel] ** 2
    sums = reliability_of(variance, np.square(error), EDGES)
    return {"variance": float(np.mean(variance)), "reliability": sums.tolist()}


def _numbers(generator: np.random.Generator, draws: Array, mean: Array, truth: Array) -> dict:
    """Of one modality's draws [K, N] of N voxels: values that JSON has."""
    variance, error = spread_and_error(draws, truth).tolist()
    ranks = rank_histogram(generator, draws, truth)
    enough = len(draws) >= 4
    return {
        "crps": float(np.mean(crps_fair(draws, truth))),
        "variance": variance,
        "error": error,
        "coverage": float(np.mean(coverage(draws, truth, LEVEL))),
        "coverage_of_ranks": float(coverage_of_ranks(ranks, LEVEL)),
        "ranks": ranks.tolist(),
        "law": law_of_draws(draws, mean, truth).tolist(),
        "reliability": reliability(draws, truth, EDGES).tolist() if enough else [],
    }


def draws_picture(slices: SubjectSlices, channel: int, draws: Array) -> dict[str, Array]:
    """One slice in grey levels: truth, mean of the draws, the first SHOWN_DRAWS
    draws, and their sd, to be compared with that mean's error."""
    scale = slices.brain[0] * slices.grey[channel]
    images = draws[:, 0, ..., channel] * scale
    wide = np.sqrt(1 + 1 / len(draws))
    return {
        "truth": slices.images[0, ..., channel] * scale,
        "mean": np.mean(images, axis=0),
        "draws": images[:SHOWN_DRAWS],
        "sd": wide * np.std(images, axis=0, ddof=1),
    }


def stack_pictures(pictures: dict[int, dict], modalities: int) -> dict[str, Array]:
    """The pictures by channel as arrays [M, ...] float32 by name; 0 where there is none."""
    first = next(iter(pictures.values()), {})
    stacked = {
        name: np.zeros((modalities, *like.shape), np.float32) for name, like in first.items()
    }
    for channel, images in pictures.items():
        for name, image in images.items():
            stacked[name][channel] = image
    return stacked


def summaries(records: list[dict]) -> list[dict]:
    """A row for each (missing, modality): means over subjects, and their ratio.

    `structure` is `summarise_structure`; `law` has rows (k, MSE_k, E + V / k).
    `spread_skill_low`, `spread_skill_high`, `coverage_low` and `coverage_high` are the ends
    of `bootstrap_interval`; `flat_ranks_p` is `uniformity` of the ranks, None for too
    few subjects.
    """
    rows = []
    for (missing, modality), group in group_rows(records, PATTERN).items():
        count = group[0]["draws"]
        moments = np.array([[r["variance"], r["error"]] for r in group])
        skill = bootstrap_interval(lambda v, k=count: np.array(ratio_of(v, k)), moments)
        covered = np.array([r["coverage"] for r in group])
        coverage_ends = bootstrap_interval(lambda v: np.mean(v, axis=0), covered)
        rows.append(
            {
                "missing": missing,
                "modality": modality,
                "subjects": len(group),
                "draws": count,
                "spread_skill": ratio_of(moments, count),
                "spread_skill_low": float(skill[0]),
                "spread_skill_high": float(skill[1]),
                **{name: _average([r[name] for r in group]) for name in SCALARS},
                "coverage_low": float(coverage_ends[0]),
                "coverage_high": float(coverage_ends[1]),
                "law": np.mean([r["law"] for r in group], axis=0).tolist(),
                "structure": summarise_structure([r["structure"] for r in group], count),
                "flat_ranks_p": _flat_ranks_p(np.array([r["ranks"] for r in group])),
            }
        )
    return rows


def predictions(records: list[dict]) -> list[dict]:
    """A row for each (missing, modality) whose variance the network predicted.

    The means over subjects of that variance and of the squared error, and `ratio`, the
    root of theirs: 1 if calibrated, below 1 if the predicted variance is too small;
    `ratio_low` and `ratio_high` are the ends of `bootstrap_interval`.
    """
    rows = []
    for (missing, modality), group in group_rows(records, PATTERN).items():
        pairs = np.array(
            [[r["predicted"]["variance"], r["mse_of_mean"]] for r in group if r["predicted"]]
        )
        if len(pairs):
            variance, error = np.mean(pairs, axis=0).tolist()
            low, high = bootstrap_interval(_root_of_ratio, pairs)
            row = {"missing": missing, "modality": modality, "subjects": len(pairs)}
            row |= {"variance": variance, "error": error}
            row["ratio"] = math.sqrt(variance / error) if error else float("nan")
            rows.append(row | {"ratio_low": float(low), "ratio_high": float(high)})
    return rows


def calibration_curves(records: list[dict], modalities: Sequence[str]) -> dict[str, dict]:
    """`reliability` and `ranks` of the draws, and `predicted`, the reliability of the variance
    that the network predicts, where it does: by modality, a curve.

    Of the records with that modality alone missing. A curve has arrays `expected`,
    `measured`, and `low` and `high` of `bootstrap_interval`.
    """
    curves: dict[str, dict] = {"reliability": {}, "ranks": {}, "predicted": {}}
    for name in modalities:
        group = [r for r in records if r["missing"] == r["modality"] == name]
        if not group:
            continue
        curves["reliability"][name] = _reliability_curve([r["reliability"] for r in group])
        curves["ranks"][name] = _rank_curve([r["ranks"] for r in group])
        predicted = [r["predicted"]["reliability"] for r in group if r["predicted"]]
        if predicted:
            curves["predicted"][name] = _reliability_curve(predicted)
    return curves


def _reliability_curve(sums: list) -> dict[str, Array]:
    sums = np.array(sums)
    if not sums.size:
        return dict.fromkeys(CURVE, np.zeros(0))
    number = sums[..., 0].sum(axis=0)
    sums = sums[:, number >= max(MIN_BIN_SHARE * number.sum(), 1)]
    expected = sums[..., 1].sum(axis=0) / sums[..., 0].sum(axis=0)

    def errors(rows: Array) -> Array:
        return rows[..., 2].sum(axis=0) / np.maximum(rows[..., 0].sum(axis=0), 1)

    values = expected, errors(sums), *bootstrap_interval(errors, sums)
    return dict(zip(CURVE, values, strict=True))


def _rank_curve(ranks: list) -> dict[str, Array]:
    counts = np.array(ranks, np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    expected = np.full(counts.shape[1], 1 / counts.shape[1])
    interval = bootstrap_interval(lambda rows: rows.mean(axis=0), shares)
    return dict(zip(CURVE, (expected, shares.mean(axis=0), *interval), strict=True))


def _root_of_ratio(pairs: Array) -> Array:
    variance, error = pairs.mean(axis=0)
    return np.sqrt(variance / error) if error else np.float64("nan")


def _flat_ranks_p(counts: Array) -> float | None:
    try:
        return uniformity(counts)
    except InputError:  # too few subjects
        return None


def ratio_of(moments: Array, count: int) -> float:
    """`spread_skill`, or nan where no draw errs at all."""
    return spread_skill(moments, count) if moments[:, 1].any() else float("nan")


def _average(values: list) -> float | None:
    return None if None in values else float(np.mean(values))
