"""Whether a lesion of the missing scan changes from draw to draw as it does from truth to truth.

Voxels and blocks do not know where the lesions are. Here a segmented lesion is the unit: its mean
and its 90th percentile in the truth and in each draw, and whether it enhances. Each is relative to
the same image's own brain outside the tumour, so a factor on the whole image is not seen.

A lesion is a connected component of a region on one slice: slices are drawn one by one, and draws
of several together would say nothing about a lesion. Of T1c the region is the tumour core, which
is where gadolinium can go whether it does or not: the enhancing tumour alone would be chosen by
what is to be predicted, and oedema would dilute the percentile. Of other scans it is the whole
tumour. Uncertainty is over subjects, each of weight 1 however many sections it has.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ummcsgm.data.labels import region
from ummcsgm.data.phantom.truth import read_truth
from ummcsgm.data.phantom.tumour import NONE
from ummcsgm.evaluation.calibration import (
    LEVEL,
    bootstrap_interval,
    coverage_of_ranks,
    crps_fair,
    rank_histogram,
    spread_skill,
)
from ummcsgm.evaluation.metrics import group_rows
from ummcsgm.evaluation.subject import EvaluatedSubject, SubjectSlices
from ummcsgm.types import Array, InputError

ENHANCED, PLAIN = "t1c", "t1"  # with and without gadolinium
WHOLE = "WT"  # of `data.labels`
MIN_VOXELS = 10  # of a lesion: with fewer, the 90th percentile lies beyond the next to largest
PERCENTILE = 90
SMOOTHING = 2.0  # mm: the sd of a Gaussian, so that noise of single voxels does not enhance
DARK = 0.1  # of the median of T1: no ratio is taken to less
# It enhances if the 90th percentile of T1c / T1 in the core, over the brain's median of it, is
# above. On 413 sections of 360 phantoms: all 97 without uptake are at most 1.07, and 315 of the 316
# with uptake at least 1.106 (one section of 13 voxels misses the patches: 1.084).
ENHANCES = 1.1
# And brightly: about half of the phantoms' lesions do. A mean that is half-way between both, and
# draws about it, enhance each time and never brightly.
BRIGHT = 1.5
BIN_EDGES = (0.2, 0.4, 0.6, 0.8)  # of probability
MEASURES = ("mean", "p90", "enhancement")
NO_SEGMENTATION = "no segmentation"
INCOMPLETE = "another contrast is missing, too"
NO_LESION = f"no lesion of at least {MIN_VOXELS} voxels on the slices that were drawn"
INTERVALS = ("spread_ratio", "spread_skill", "coverage")


# One subject.


def score_lesions(
    evaluated: EvaluatedSubject, slices: SubjectSlices, channel: int, mean: Array, draws: Array
) -> dict:
    """{"lesions": [...], "lesions_skipped": a reason or None} of one missing modality.

    `mean` [S, H, W, M] is the network's, `draws` [K, S, H, W, M] are of the slices. A lesion has
    `z`, `region`, `voxels`; `truth`, `of_mean` and `draws` (K of each), the numbers of
    `measure_section`; and `known`, what the phantom's truth says (`pattern`, `probability` that it
    enhances), None of a patient. Values that JSON has.
    """
    scanned = [name for name in evaluated.modalities if name in evaluated.prepared.scales]
    try:
        labels = evaluated.segmentation_on(slices.z)
        truth = read_truth(evaluated.subject.files[scanned[0]].parent)
    except InputError as error:  # of no use for lesions, and of no harm to all else
        return {"lesions": [], "lesions_skipped": str(error)}
    if labels is None:
        return {"lesions": [], "lesions_skipped": NO_SEGMENTATION}
    known = truth and {"pattern": truth.pattern, "probability": truth.probability}
    modality = evaluated.modalities[channel]
    with_plain = modality == ENHANCED and PLAIN in scanned
    plain = evaluated.modalities.index(PLAIN) if with_plain else None
    found = []
    for index, mask, reference in find_sections(labels, slices.brain, region_of(modality)):
        t1 = None if plain is None else slices.images[index, ..., plain]
        images = np.concatenate(
            [slices.images[None, index, ..., channel], mean[None, index, ..., channel]]
            + [draws[:, index, ..., channel]]
        )
        numbers = measure_section(images, mask, reference, t1, slices.brain[index], evaluated.pixel)
        if numbers is not None:
            parts = {"truth": 0, "of_mean": 1, "draws": slice(2, None)}
            found.append(
                {"z": int(slices.z[index]), "region": region_of(modality)}
                | {"voxels": int(mask.sum()), "known": known}
                | {n: {k: v[p].tolist() for k, v in numbers.items()} for n, p in parts.items()}
            )
    return {"lesions": found, "lesions_skipped": None}


def region_of(modality: str) -> str:
    """The region of `data.labels` whose components are the lesions of a missing modality."""
    return "TC" if modality == ENHANCED else WHOLE


def lesion_slice(evaluated: EvaluatedSubject, otherwise: int) -> Array:
    """[1] the scored slice with the largest section of the tumour's core, or else of the whole
    tumour; `otherwise` where no segmentation shows either."""
    try:
        labels = evaluated.segmentation_on(evaluated.z)
    except InputError:
        labels = None
    for name in ("TC", WHOLE) if labels is not None else ():
        area = region(labels, name).sum(axis=(1, 2))
        if area.any():
            return evaluated.z[[int(np.argmax(area))]]
    return np.array([otherwise])


def find_sections(labels: Array, brain: Array, name: str) -> list[tuple[int, Array, Array]]:
    """(slice, mask [H, W], reference [H, W]) of each lesion in `labels` [S, H, W].

    The lesion's voxels in the brain, at least MIN_VOXELS; the reference is the slice's brain
    outside the whole tumour, as many at least.
    """
    found = []
    for index, (plane, inside) in enumerate(zip(labels, brain, strict=True)):
        components, count = ndimage.label(region(plane, name) & inside)
        reference = inside & ~region(plane, WHOLE)
        masks = [components == number for number in range(1, count + 1)]
        if reference.sum() >= MIN_VOXELS:
            found += [(index, m, reference) for m in masks if m.sum() >= MIN_VOXELS]
    return found


def measure_section(
    images: Array,
    mask: Array,
    reference: Array,
    t1: Array | None,
    brain: Array,
    pixel: Sequence[float],
) -> dict[str, Array] | None:
    """[N] numbers of images [N, H, W], the truth first: `mean` and `p90` inside `mask`, in units of
    the image's own median in `reference`; and `enhancement`, where there is a `t1` [H, W].

    That is the 90th percentile inside `mask` of image / t1, over the median of it in `reference`,
    both smoothed by SMOOTHING within `brain`; `pixel` is in mm. None if the truth's median is not
    above 0: there is nothing to be relative to.
    """
    images = np.asarray(images, np.float64)
    medians = np.median(images[:, reference], axis=1)
    if medians[0] <= 0:
        return None
    medians = np.maximum(medians, DARK * medians[0])
    inside = images[:, mask] / medians[:, None]
    numbers = {"mean": inside.mean(axis=1), "p90": np.percentile(inside, PERCENTILE, axis=1)}
    if t1 is not None:
        smooth = _smooth(np.concatenate([images, t1[None]]), brain, pixel)
        plain = np.maximum(smooth[-1], DARK * np.median(smooth[-1][reference]))
        ratios = smooth[:-1] / plain
        typical = np.median(ratios[:, reference], axis=1)
        typical = np.maximum(typical, DARK * typical[0])
        high = np.percentile(ratios[:, mask], PERCENTILE, axis=1)
        numbers["enhancement"] = high / typical
    return numbers


def _smooth(images: Array, brain: Array, pixel: Sequence[float]) -> Array:
    """Means [N, H, W] of images over a Gaussian of SMOOTHING, within the brain."""
    sigma = (0, *(SMOOTHING / np.asarray(pixel)))
    share = ndimage.gaussian_filter(brain.astype(np.float64)[None], sigma)
    return ndimage.gaussian_filter(images * brain, sigma) / np.maximum(share, 1e-3)


# All subjects.


class Lesions(NamedTuple):
    """One measure of L lesions of S subjects."""

    truth: Array  # [L]
    of_mean: Array  # [L]
    draws: Array  # [K, L]
    subject: Array  # [L] 0 to S - 1

    def weights(self, subjects: Array) -> Array:
        """[L]: of some subjects, each as often as it is there, 1 shared by its lesions."""
        count = self.subject.max() + 1
        often = np.bincount(subjects, minlength=count) / np.bincount(self.subject, minlength=count)
        return often[self.subject]


def collect(records: list[dict], measure: str) -> Lesions | None:
    """One measure of the lesions of one modality; None where none has it."""
    rows = [
        (record["subject"], lesion)
        for record in records
        for lesion in record["lesions"]
        if measure in lesion["truth"]
    ]
    if not rows:
        return None
    names = list(dict.fromkeys(name for name, _ in rows))
    values = {n: np.array([lesion[n][measure] for _, lesion in rows]) for n in Lesions._fields[:3]}
    values["draws"] = values["draws"].T
    return Lesions(**values, subject=np.array([names.index(name) for name, _ in rows]))


def lesion_results(records: list[dict]) -> dict:
    """What lesions say of the draws, from the records of `ensemble.measure_draws`: values that
    JSON has; empty without records.

    `rows` are `summarise` of each modality that alone is missing, and measure; `enhancement` is
    `summarise_enhancement` of T1c, or None; `skipped` has, by reason, the subjects without a score.
    """
    records = [record for record in records if "lesions" in record]
    if not records:
        return {}
    single = [record for record in records if _alone(record)]
    rows, enhancement = [], None
    for (modality,), group in group_rows(single, ["modality"]).items():
        labels = {"modality": modality, "region": region_of(modality)}
        for measure in MEASURES:
            lesions = collect(group, measure)
            if lesions is not None:
                rows.append(labels | {"measure": measure} | summarise(lesions))
                if measure == "enhancement":
                    known = [x["known"] for r in group for x in r["lesions"]]
                    enhancement = summarise_enhancement(lesions, known)
    skipped: dict[str, list[str]] = {}
    for (subject,), group in group_rows(single, ["subject"]).items():
        if not any(record["lesions"] for record in group):
            reason = group[0]["lesions_skipped"] or NO_LESION
            skipped.setdefault(reason, []).append(subject)
    complete = {record["subject"] for record in single}
    if others := [name for name in _names(records) if name not in complete]:
        skipped[INCOMPLETE] = others
    constants = {"least_voxels": MIN_VOXELS, "threshold": ENHANCES, "bright": BRIGHT}
    constants |= {"smoothing": SMOOTHING}
    return constants | {"rows": rows, "enhancement": enhancement, "skipped": skipped}


def _alone(record: dict) -> bool:
    """Whether the record's modality was all that was missing."""
    return record["missing"] == record["modality"]


def _names(records: list[dict]) -> list[str]:
    """The subjects of records, each once."""
    return list(dict.fromkeys(record["subject"] for record in records))


def summarise(lesions: Lesions) -> dict:
    """How draws of a measure are distributed, against truths.

    `truth`, `of_mean`, `draw`: means; `truth_sd` between subjects; `draw_sd` between draws, a root
    mean square over lesions. `spread_ratio` is the second over the first: at most 1 for right
    draws, and 1 where nothing of the measure can be seen in the other scans. `spread_skill` and
    `coverage` (by ranks, which assumes no law) are right at 1 and LEVEL whatever can be seen.
    `crps` is fair, and `crps_of_mean` the absolute error of the network's mean. INTERVALS have the
    ends of `bootstrap_interval`.
    """
    every = np.arange(lesions.subject.max() + 1)
    scores = _scores(lesions)

    def statistic(subjects: Array) -> Array:
        return _statistics(lesions, scores, lesions.weights(subjects))

    low, high = bootstrap_interval(statistic, every)
    names = ("spread_ratio", "spread_skill", "coverage", "crps", "crps_of_mean")
    names += ("truth", "of_mean", "draw", "truth_sd", "draw_sd")
    row = {"subjects": len(every), "lesions": len(lesions.truth), "draws": len(lesions.draws)}
    row |= dict(zip(names, statistic(every).tolist(), strict=True))
    ends = [dict(zip(names, end.tolist(), strict=True)) for end in (low, high)]
    for name in INTERVALS:
        row |= {f"{name}_low": ends[0][name], f"{name}_high": ends[1][name]}
    return row


def _scores(lesions: Lesions) -> Array:
    """[8, L]: variance and squared error of the draws' mean, coverage, CRPS, absolute error of the
    network's mean, and truth, that mean and the draws' mean."""
    generator = np.random.default_rng(0)
    pairs = zip(lesions.draws.T, lesions.truth, strict=True)
    ranks = np.array([rank_histogram(generator, draws, truth) for draws, truth in pairs])
    draw = np.mean(lesions.draws, axis=0)
    return np.stack(
        [
            np.var(lesions.draws, axis=0, ddof=1),
            np.square(draw - lesions.truth),
            coverage_of_ranks(ranks, LEVEL),
            crps_fair(lesions.draws, lesions.truth),
            np.abs(lesions.of_mean - lesions.truth),
            lesions.truth,
            lesions.of_mean,
            draw,
        ]
    )


def _statistics(lesions: Lesions, scores: Array, weights: Array) -> Array:
    total = weights.sum()
    variance, error, covered, crps, error_of_mean, truth, of_mean, draw = scores @ weights / total
    between = weights @ np.square(lesions.truth - truth)
    truth_sd = np.sqrt(between / (total - 1)) if total > 1 else np.nan
    ratio = np.sqrt(variance) / truth_sd if truth_sd > 0 else np.nan
    skill = np.nan
    if error > 0:
        skill = spread_skill(np.array([[variance, error]]), len(lesions.draws))
    numbers = [ratio, skill, covered, crps, error_of_mean]
    return np.array([*numbers, truth, of_mean, draw, truth_sd, np.sqrt(variance)])


def summarise_enhancement(lesions: Lesions, known: list[dict | None]) -> dict:
    """P(it enhances), the share of a lesion's draws above ENHANCES, against the truth.

    `share_of_truths`, `share_of_draws`, `share_of_mean`: how many enhance; `share_ratio`, the
    second over the first. `brier` is fair, that of as many draws as one likes; `brier_of_share`
    that of answering the truths' own share for every lesion. `bright` has the same above BRIGHT.
    `reliability` is `reliability_bins`. `known` is `compare_with_known`, None unless every lesion
    is a phantom's.
    """
    truth, drawn = lesions.truth > ENHANCES, lesions.draws > ENHANCES
    every = np.arange(lesions.subject.max() + 1)
    result = {"subjects": len(every), "lesions": len(truth), "draws": len(drawn)}
    result |= _shares(lesions, ENHANCES) | {"bright": _shares(lesions, BRIGHT)}
    share = result["share_of_truths"]
    result["brier_of_share"] = share * (1 - share)
    result["reliability"] = reliability_bins(truth, drawn, lesions)
    result["known"] = None
    if all(known):
        result["known"] = compare_with_known(truth, drawn, known, lesions.weights(every))
    return result


def _shares(lesions: Lesions, level: float) -> dict:
    """How many truths, draws and means are above a level, and the fair Brier score of the share of
    a lesion's draws, each with its interval."""
    truth, drawn = lesions.truth > level, lesions.draws > level
    brier = crps_fair(drawn.astype(np.float64), truth.astype(np.float64))
    values = np.stack([truth, np.mean(drawn, axis=0), lesions.of_mean > level, brier])

    def statistic(subjects: Array) -> Array:
        weights = lesions.weights(subjects)
        numbers = values @ weights / weights.sum()
        return np.append(numbers, numbers[1] / numbers[0] if numbers[0] else np.nan)

    names = ("share_of_truths", "share_of_draws", "share_of_mean", "brier", "share_ratio")
    every = np.arange(lesions.subject.max() + 1)
    found, ends = {}, (statistic(every), *bootstrap_interval(statistic, every))
    for name, *three in zip(names, *(end.tolist() for end in ends), strict=True):
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), three, strict=True))
    return found


def reliability_bins(truth: Array, drawn: Array, lesions: Lesions) -> list[dict]:
    """How often truths enhance where draws say they do: a row for each bin of probability with a
    lesion or more.

    Each draw is left out in turn: a bin is chosen by the share of the K - 1 others that enhance,
    `probability` is how often the draws left out do, `frequency` how often the truths do, with the
    ends of `bootstrap_interval`; `lesions` is the bin's number of them, in parts. If the truth is
    exchangeable with the draws both are equal in expectation at every K. The share of all K draws
    would not do: of an unforeseeable event it differs between lesions by chance, and the truth's
    frequency does not.
    """
    count = len(drawn)
    enhancing = drawn.sum(axis=0)
    number = len(BIN_EDGES) + 1
    sums = np.zeros((len(truth), number, 3))  # draws left out, of these enhancing, truths enhancing
    for left_out in (0, 1):
        share = (enhancing - left_out) / (count - 1)
        bins = np.digitize(share, BIN_EDGES)
        weight = np.where(left_out, enhancing, count - enhancing) / count
        rows = np.arange(len(truth)), bins
        sums[rows] += np.stack([weight, weight * left_out, weight * truth], axis=1)
    every = np.arange(lesions.subject.max() + 1)
    total = np.tensordot(lesions.weights(every), sums, axes=1)

    def frequencies(subjects: Array) -> Array:
        some = np.tensordot(lesions.weights(subjects), sums, axes=1)
        some = np.where(some[:, :1] > 0, some, total)  # a bin that no lesion drawn is in
        return some[:, 2] / np.maximum(some[:, 0], 1e-12)

    low, high = bootstrap_interval(frequencies, every)
    edges = (0.0, *BIN_EDGES, 1.0)
    return [
        {
            "low": edges[b],
            "high": edges[b + 1],
            "lesions": float(sums[:, b, 0].sum()),
            "probability": float(total[b, 1] / total[b, 0]),
            "frequency": float(total[b, 2] / total[b, 0]),
            "frequency_low": float(low[b]),
            "frequency_high": float(high[b]),
        }
        for b in np.flatnonzero(sums[..., 0].sum(axis=0) >= 1)
    ]


def compare_with_known(truth: Array, drawn: Array, known: list[dict], weights: Array) -> dict:
    """Draws of phantoms against the law that made them.

    `probability`, that a tumour takes up gadolinium given everything else, and of the lesions
    `share_built`, those that do. The draws' own probability has `mean` and `sd` over lesions;
    `sd_of_right` is the sd of K draws of that law, by counting alone. `brier` is that of answering
    the known probability: the least that can be expected. `agreement` is the share of lesions that
    measure as they were built; `patterns` has for each the `lesions` and the share that `enhance`.
    """
    probability = np.array([k["probability"] for k in known])
    patterns = np.array([k["pattern"] for k in known])
    built, said, total = patterns != NONE, np.mean(drawn, axis=0), weights.sum()
    mean, expected = (float(weights @ values / total) for values in (said, probability))
    return {
        "probability": expected,
        "share_built": float(weights @ built / total),
        "mean": mean,
        "sd": float(np.sqrt(weights @ np.square(said - mean) / total)),
        "sd_of_right": float(np.sqrt(expected * (1 - expected) / len(drawn))),
        "brier": float(weights @ np.square(probability - truth) / total),
        "agreement": float(weights @ (built == truth) / total),
        "patterns": {
            str(name): {
                "lesions": int(np.sum(patterns == name)),
                "enhance": float(np.mean(truth[patterns == name])),
            }
            for name in np.unique(patterns)
        },
    }


def lesion_rows(records: list[dict]) -> list[dict]:
    """lesions.csv: a row for each lesion of a modality that alone is missing, and image (`truth`,
    `mean`, `draw 1`, ...)."""
    rows = []
    for record in filter(_alone, records):
        columns = {name: record[name] for name in ("subject", "group", "modality")}
        for lesion in record.get("lesions", []):
            known = lesion["known"] or {"pattern": None}
            labels = {"region": lesion["region"], "slice": lesion["z"], "voxels": lesion["voxels"]}
            labels |= {"pattern": known["pattern"]}
            images = {"truth": lesion["truth"], "mean": lesion["of_mean"]}
            for k in range(len(lesion["draws"]["p90"])):
                images[f"draw {k + 1}"] = {n: v[k] for n, v in lesion["draws"].items()}
            for image, numbers in images.items():
                measures = {name: numbers.get(name) for name in MEASURES}
                rows.append(columns | labels | {"image": image} | measures)
    return rows


def skipped_line(results: dict) -> str:
    """Which subjects have no lesion scores and why, in one line; empty if all have, or none was
    asked for."""
    groups = results.get("skipped", {})
    count = sum(map(len, groups.values()))
    parts = (f"{reason}: {', '.join(names)}" for reason, names in groups.items())
    several = "s"[: count != 1]
    return f"lesions: {count} subject{several} without a score; {'; '.join(parts)}" if count else ""
