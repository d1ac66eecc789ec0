"""Named profiles of metrics: the only scorer of an estimate against a truth.

The same prediction scores 7.8 dB and 0.42 SSIM apart under protocols in use, so a number
stands beside the name of its profile and the hash of its definition (`profile_hash`).
`evaluate`, `study` and `score` all call `score`. Where the description of a protocol
leaves something open, the profile's `text` says what is chosen here. Volumes are
[Z, Y, X]: z from inferior, y from posterior, x from the left of the patient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from ummcsgm.evaluation.metrics import METRICS, NotMeasuredError
from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import digest

SCORER_VERSION = 1  # raise it when `score` gives other numbers: all hashes change


@dataclass(frozen=True)
class ScoredVolume:
    """A truth, an estimate of it in the same units, and where they are compared.

    `estimate` has all slices, or only the axial `slices` (their z), which are scored
    then in place of the profile's own choice. `tumour` is None without a segmentation.
    """

    truth: Array  # [Z, Y, X]
    estimate: Array  # [Z, Y, X] or [S, Y, X]
    brain: Array  # [Z, Y, X] bool
    tumour: Array | None = None  # [Z, Y, X] bool
    slices: Array | None = None  # [S] int


# The fields of the next four classes and their values are what `profile_hash` hashes.


@dataclass(frozen=True)
class Slices:
    """Axial slices `first` to `last` with any brain, of volumes `depth` slices deep; of
    other volumes the slices where the brain covers more than `brain_fraction`."""

    depth: int
    first: int
    last: int
    brain_fraction: float


@dataclass(frozen=True)
class Crop:
    """The part that is scored of slices of `frame` (Y, X); others are not cropped."""

    frame: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Measure:
    """A metric of one region, and the name under which it is reported.

    `function` is a key of METRICS, `region` of REGIONS; `span` is the data range, None
    where the function has none or takes it from the data.
    """

    name: str
    function: str
    span: float | None
    region: str = "frame"


@dataclass(frozen=True)
class Profile:
    """All that decides the numbers of a protocol.

    Volumes are cropped, the slices chosen (None: all), truth and estimate scaled (`scaling` is a
    key of SCALINGS, with its percentiles, to 0 to `peak`), the estimate's background is changed
    (`background` is a key of BACKGROUNDS), and the measures taken. Means are taken over slices,
    where the metric says so, then over subjects.
    """

    name: str
    text: str
    crop: Crop | None
    scaling: str
    percentiles: tuple[float, ...]
    peak: float
    background: str
    slices: Slices | None
    measures: tuple[Measure, ...]


def profile_hash(profile: Profile) -> str:
    """12 hexadecimal digits that change with any field of the profile, and with the
    version of any function that it names."""
    versions = {
        "application": SCORER_VERSION,
        "scaling": SCALINGS[profile.scaling][1],
        "background": BACKGROUNDS[profile.background][1],
        "functions": [METRICS[measure.function][1] for measure in profile.measures],
        "regions": [REGIONS[measure.region][1] for measure in profile.measures],
    }
    return digest({"definition": asdict(profile), "versions": versions})[:12]


Reason = NotMeasuredError | InputError  # why a metric has no value; its text is reported


def score(profile: Profile, volume: ScoredVolume) -> dict[str, float | Reason]:
    """The value of each metric of `profile` by its name, or the Reason why it has none.

    Raises:
        InputError: the shapes disagree, no slice is given, or only some slices are and
            the profile measures whole volumes.
    """
    _check_shapes(profile, volume)
    try:
        volume = _cropped(profile.crop, volume)
        scaling, _ = SCALINGS[profile.scaling]
        scale_truth, scale_estimate = scaling(volume, profile)
        if volume.slices is None:
            z = scored_slices(volume.brain, profile)
            volume = replace(volume, estimate=volume.estimate[z], slices=z)
    except InputError as error:
        return {measure.name: error.with_traceback(None) for measure in profile.measures}
    truth = scale_truth(volume.truth[volume.slices])
    estimate = scale_estimate(volume.estimate)
    background, _ = BACKGROUNDS[profile.background]
    estimate = background(truth, estimate, volume.brain[volume.slices])
    return {
        measure.name: _value_or_reason(measure, truth, estimate, volume)
        for measure in profile.measures
    }


def scored_slices(brain: Array, profile: Profile) -> Array:
    """The z of the slices of `brain` [Z, Y, X] bool that `profile` scores, ascending.

    Raises:
        InputError: there is no slice to score.
    """
    slices, z = profile.slices, np.arange(len(brain))
    if slices is None:
        return z
    area = np.mean(brain, axis=(1, 2))
    if len(brain) == slices.depth:
        scored = (slices.first <= z) & (z <= slices.last) & (area > 0)
        needed = f"some brain in slices {slices.first} to {slices.last}"
    else:
        scored = area > slices.brain_fraction
        needed = f"a slice with brain on more than {slices.brain_fraction:.0%} of it"
    if not scored.any():
        raise InputError(
            f"no slice to score: profile {profile.name} needs {needed}, and in this "
            f"volume of {len(brain)} slices the brain covers at most "
            f"{area.max(initial=0):.1%} of a slice."
        )
    return np.flatnonzero(scored)


def grey_levels_per_unit(truth: Array, brain: Array, profile: Profile) -> float:
    """The factor that makes the truth's percentile over its brain the profile's peak.

    Raises:
        InputError: that percentile is not positive, or the brain is empty.
    """
    percentile, inside = profile.percentiles[0], truth[brain]
    bright = np.percentile(inside, percentile) if inside.size else 0.0
    if not bright > 0:
        raise InputError(
            f"the truth's {percentile} percentile over the brain is {bright:g}: there is "
            "nothing to scale by."
        )
    return float(profile.peak / bright)


def _check_shapes(profile: Profile, volume: ScoredVolume) -> None:
    expected = shape = volume.truth.shape
    if volume.slices is not None:
        if profile.slices is None:
            raise InputError(f"profile {profile.name} measures whole volumes, got some slices.")
        if len(volume.slices) == 0:
            raise InputError("no slice to score: the list of slices is empty.")
        expected = (len(volume.slices), *shape[1:])
    if volume.brain.shape != shape or volume.estimate.shape != expected:
        raise InputError(
            f"a truth of {shape} needs a brain of {shape} and an estimate of {expected}, "
            f"got {volume.brain.shape} and {volume.estimate.shape}."
        )


def _cropped(crop: Crop | None, volume: ScoredVolume) -> ScoredVolume:
    if crop is None or volume.brain.shape[1:] != crop.frame:
        return volume
    part = (slice(None), slice(*crop.rows), slice(*crop.columns))
    tumour = None if volume.tumour is None else volume.tumour[part]
    images = volume.truth[part], volume.estimate[part], volume.brain[part]
    return ScoredVolume(*images, tumour, volume.slices)


def _value_or_reason(
    measure: Measure, truth: Array, estimate: Array, volume: ScoredVolume
) -> float | Reason:
    try:
        region = REGIONS[measure.region][0](volume)[volume.slices]
        if not region.any():
            raise NotMeasuredError(f"no voxel is {measure.region}")
        return float(METRICS[measure.function][0](truth, estimate, measure.span, region))
    except (NotMeasuredError, InputError) as error:
        return error.with_traceback(None)  # which would keep the volumes in memory


# What scales the truth's slices and the estimate's; statistics are those of the volume.

Scale = Callable[[Array], Array]
Scaling = Callable[[ScoredVolume, Profile], tuple[Scale, Scale]]


def _by_truth_percentile(volume: ScoredVolume, profile: Profile) -> tuple[Scale, Scale]:
    factor = grey_levels_per_unit(volume.truth, volume.brain, profile)

    def scale(images: Array) -> Array:
        return np.clip(images * factor, 0, profile.peak)

    return scale, scale


def _by_own_slice_max(volume: ScoredVolume, profile: Profile) -> tuple[Scale, Scale]:
    """Each slice of each over its own largest value; negative values are 0."""

    def scale(images: Array) -> Array:
        images = np.clip(images, 0, None).astype(np.float64)
        largest = images.max(axis=(1, 2), keepdims=True)
        return profile.peak * images / np.where(largest > 0, largest, 1)

    return scale, scale


def _by_own_min_max(volume: ScoredVolume, profile: Profile) -> tuple[Scale, Scale]:
    """Each from its own minimum to its own maximum, after negative values are 0."""
    both = [np.clip(images, 0, None) for images in (volume.truth, volume.estimate)]
    return tuple(_stretch(images.min(), images.max(), profile.peak) for images in both)


def _by_truth_max_rounded(volume: ScoredVolume, profile: Profile) -> tuple[Scale, Scale]:
    """Both from 0 to the truth's largest value, clipped, as whole levels."""
    stretch = _stretch(0, volume.truth.max(), profile.peak)

    def scale(images: Array) -> Array:
        return np.rint(stretch(images))

    return scale, scale


def _by_own_percentiles(volume: ScoredVolume, profile: Profile) -> tuple[Scale, Scale]:
    """Each between its own percentiles over all voxels, the lower one at least 0."""
    limits = [np.percentile(v, profile.percentiles) for v in (volume.truth, volume.estimate)]
    return tuple(_stretch(max(low, 0), high, profile.peak) for low, high in limits)


def _stretch(low: float, high: float, peak: float) -> Scale:
    """A function that clips to `low` to `high` and maps these to 0 to `peak`."""
    if not high > low:
        raise InputError(
            f"the values to scale between are {low:g} and {high:g}: there is nothing between them."
        )
    return lambda v: (np.clip(v, low, high).astype(np.float64) - low) / (high - low) * peak


def _segmented(volume: ScoredVolume) -> Array:
    if volume.tumour is None:
        raise NotMeasuredError("no segmentation")
    return volume.tumour


def _tumour(volume: ScoredVolume) -> Array:
    if not _segmented(volume).any():
        raise NotMeasuredError("tumour-free")
    return volume.tumour


Background = Callable[[Array, Array, Array], Array]  # of truth, estimate and brain
Region = Callable[[ScoredVolume], Array]

# Each with its version: raise it when the function gives other numbers, so that the
# hashes of the profiles that name it change.
SCALINGS: dict[str, tuple[Scaling, int]] = {
    "truth's percentile": (_by_truth_percentile, 1),
    "own slice maximum": (_by_own_slice_max, 1),
    "own minimum and maximum, negatives 0": (_by_own_min_max, 1),
    "truth's maximum, rounded": (_by_truth_max_rounded, 1),
    "own percentiles": (_by_own_percentiles, 1),
}
BACKGROUNDS: dict[str, tuple[Background, int]] = {
    "kept": (lambda truth, estimate, brain: estimate, 1),
    "0 outside the brain": (lambda truth, estimate, brain: np.where(brain, estimate, 0), 1),
    "0 where the scaled truth is 0": (
        lambda truth, estimate, brain: np.where(truth == 0, 0, estimate),
        1,
    ),
}
REGIONS: dict[str, tuple[Region, int]] = {
    "frame": (lambda volume: np.ones(volume.brain.shape, bool), 1),
    "brain": (lambda volume: volume.brain, 1),
    "tumour": (_tumour, 1),
    "healthy": (lambda volume: volume.brain & ~_segmented(volume), 1),
    "not tumour": (lambda volume: ~_segmented(volume), 1),
}


# The profiles.

EVERY_SLICE_WITH_BRAIN = Slices(depth=0, first=0, last=0, brain_fraction=0.0)
IN_GREY_LEVELS = (
    "Intensities are scaled so that the truth's 99.9 percentile over the brain is 255, "
    "and clipped to 0 to 255; the estimate in the truth's units, so that an error of "
    "scale counts."
)
TABLE1 = Profile(
    name="umm-csgm-table1",
    text="What reproduces Table 1 of UMM-CSGM, as far as the table itself shows. Axial "
    "slices 50 to 109 of 155, elsewhere those with brain on more than a fifth; the "
    "whole frame, the estimate 0 outside the brain. " + IN_GREY_LEVELS + " SSIM with "
    "the whole slice as one window (the only one within reach of the paper's numbers), "
    "and with Wang's 11 x 11 Gaussian window. A slice without any error has no PSNR "
    "and is left out of the mean PSNR; a subject without any error has none, and is "
    "skipped and counted.",
    crop=None,
    scaling="truth's percentile",
    percentiles=(99.9,),
    peak=255.0,
    background="0 outside the brain",
    slices=Slices(depth=155, first=50, last=109, brain_fraction=0.2),
    measures=(
        Measure("psnr", "psnr of slices", 255.0),
        Measure("ssim_global", "global ssim of slices", 255.0),
        Measure("ssim_wang", "gaussian ssim of slices", 255.0),
        Measure("mae", "mae of slices", None),
    ),
)
MM_GAN = Profile(
    name="mm-gan",
    text="After MM-GAN's released code: negative values are 0, and each slice of truth "
    "and estimate is divided by its OWN maximum, so that an error of scale is "
    "invisible; background counts. 240 x 240 frames are cropped to 194 x 155 and of "
    "155 slices the first 148 count. Chosen here: slices without brain are left out, "
    "of PSNR also those without any error, other frames are not cropped, rows run from "
    "the anterior and columns from the right as BraTS stores them, nothing is resized "
    "to 256 x 256.",
    crop=Crop(frame=(240, 240), rows=(17, 211), columns=(44, 199)),
    scaling="own slice maximum",
    percentiles=(),
    peak=1.0,
    background="kept",
    slices=Slices(depth=155, first=0, last=147, brain_fraction=0.0),
    measures=(
        Measure("psnr", "psnr of slices", 1.0),
        Measure("ssim", "gaussian ssim in the plane", 1.0),
        Measure("mse", "mse of slices", None),
    ),
)
HI_NET = Profile(
    name="hi-net",
    text="After Hi-Net's released code: truth and estimate each from their OWN minimum "
    "to maximum as 0 to 1, the estimate 0 where the truth is 0, SSIM over the volume "
    "in 7 x 7 x 7 windows with the data range 2 that scikit-image took for floats, "
    "which flatters, PSNR with peak 1. 240 x 240 frames are cropped to 180 x 160. "
    "Chosen here: the longer side of the crop runs from front to back; negative values "
    "are 0, as in the code's 8-bit images; minimum and maximum are those of the "
    "volume, where the code also stretches each of four patches a slice; other frames "
    "are not cropped.",
    crop=Crop(frame=(240, 240), rows=(40, 220), columns=(40, 200)),
    scaling="own minimum and maximum, negatives 0",
    percentiles=(),
    peak=1.0,
    background="0 where the scaled truth is 0",
    slices=None,
    measures=(
        Measure("psnr", "psnr of voxels", 1.0),
        Measure("ssim", "uniform ssim", 2.0),
        Measure("nmse", "nmse of the volume", None),
    ),
)
FAST_DDPM = Profile(
    name="fast-ddpm",
    text="After Fast-DDPM's released code: 8-bit images, background counts, SSIM in "
    "uniform 7 x 7 windows with variances of samples and data range 255. Chosen here: "
    "0 to the truth volume's largest value become 0 to 255, the estimate is treated "
    "alike, both clipped and rounded; slices without brain are left out, of PSNR also "
    "those without any error; nothing is resized.",
    crop=None,
    scaling="truth's maximum, rounded",
    percentiles=(),
    peak=255.0,
    background="kept",
    slices=EVERY_SLICE_WITH_BRAIN,
    measures=(
        Measure("psnr", "psnr of slices", 255.0),
        Measure("ssim", "uniform ssim in the plane", 255.0),
    ),
)
BRASYN = Profile(
    name="brasyn-official",
    text="After the official BraSyn script, with its quirks. Truth and estimate are "
    "each clipped to their OWN 0.5 and 99.5 percentiles and stretched to 0 to 1, so "
    "that an error of scale is invisible. ssim_tumour is that of the WHOLE cuboid with "
    "zeros outside the tumour, which agree by themselves: near 1 for anyone; "
    "ssim_healthy is that with zeros inside the tumour. No data range is given: it is "
    "the largest minus the least of the values passed. 11 x 11 x 11 Gaussian windows. "
    "Chosen here: percentiles over all voxels, the lower one at least 0; tumour-free "
    "subjects, for which the script gives NaN, are skipped and counted; ssim is that "
    "of the volume as it is.",
    crop=None,
    scaling="own percentiles",
    percentiles=(0.5, 99.5),
    peak=1.0,
    background="kept",
    slices=None,
    measures=(
        Measure("ssim", "gaussian ssim of the zeroed volume", None),
        Measure("ssim_tumour", "gaussian ssim of the zeroed volume", None, "tumour"),
        Measure("ssim_healthy", "gaussian ssim of the zeroed volume", None, "not tumour"),
    ),
)
VOLUME = Profile(
    name="volume-3d",
    text="The whole volume at once, background as it was estimated. "
    + IN_GREY_LEVELS
    + " SSIM in 11 x 11 x 11 Gaussian windows of sigma 1.5 wholly inside.",
    crop=None,
    scaling="truth's percentile",
    percentiles=(99.9,),
    peak=255.0,
    background="kept",
    slices=None,
    measures=(
        Measure("psnr", "psnr of voxels", 255.0),
        Measure("ssim", "gaussian ssim", 255.0),
        Measure("mae", "mae of voxels", None),
    ),
)


def _of_region(name: str, region: str, text: str) -> Profile:
    """The profile of the voxels of one region of the whole volume."""
    return Profile(
        name=name,
        text=text + " " + IN_GREY_LEVELS + " The estimate is 0 outside the brain. SSIM "
        "in axial 11 x 11 Gaussian windows, a mean over the voxels of the region whose "
        "window is inside the frame: what lies around the region is seen by them too.",
        crop=None,
        scaling="truth's percentile",
        percentiles=(99.9,),
        peak=255.0,
        background="0 outside the brain",
        slices=None,
        measures=(
            Measure("psnr", "psnr of voxels", 255.0, region),
            Measure("ssim", "gaussian ssim in the plane", 255.0, region),
            Measure("mae", "mae of voxels", None, region),
        ),
    )


BRAIN = _of_region("brain-only", "brain", "The voxels of the brain, and no others.")
TUMOUR = _of_region(
    "tumour",
    "tumour",
    "The voxels inside the segmentation, whatever their label; tumour-free subjects "
    "and those without a segmentation are skipped and counted.",
)
HEALTHY = _of_region(
    "healthy",
    "healthy",
    "The voxels of the brain outside the segmentation; subjects without a segmentation "
    "are skipped and counted.",
)
PROFILES = (TABLE1, MM_GAN, HI_NET, FAST_DDPM, BRASYN, BRAIN, VOLUME, TUMOUR, HEALTHY)
