"""Named metric profiles: each a protocol in use, as literal data with a hash.

The same prediction scores differently under each, so a number goes with the name of its
profile and the hash of its definition (`protocol.digest`). Where a protocol's
description leaves something open, the profile's `text` says what was chosen. Spatial
facts are in the axes that volumes have here: z from inferior, y from posterior, x from
the left of the patient.
"""

from __future__ import annotations

from dataclasses import dataclass

from ummcsgm.evaluation import metrics


@dataclass(frozen=True)
class Slices:
    """Axial slices `first` to `last` with any brain of volumes `depth` slices deep, of
    other volumes those where the brain covers more than `brain_fraction`."""

    depth: int
    first: int
    last: int
    brain_fraction: float


@dataclass(frozen=True)
class Crop:
    """What is kept, from first to beyond the last, of slices of `frame` only (Y, X)."""

    frame: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


@dataclass(frozen=True)
class Measure:
    """A metric under the name by which it is told, of one region.

    `function` is one of `measures.METRICS`, `region` of `normalisation.REGIONS`; `span`
    is the data range, None where the function has none or takes it from the data.
    """

    name: str
    function: str
    span: float | None
    region: str = "frame"


@dataclass(frozen=True)
class Definition:
    """All that decides the numbers of a profile.

    Volumes are cropped, scaled (`scaling` is one of `normalisation.SCALINGS`, with its
    percentiles, to 0 to `peak`), the estimate's background is seen to (`background` is
    one of `normalisation.BACKGROUNDS`), the slices chosen, None for all, and then
    measured. Means are taken over slices, where the metric says so, then over subjects.
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


EVERY_SLICE_WITH_BRAIN = Slices(depth=0, first=0, last=0, brain_fraction=0.0)
IN_GREY_LEVELS = (
    "Intensities are scaled so that the truth's 99.9 percentile over the brain is 255, "
    "and clipped to 0 to 255; the estimate in the truth's units, so that an error of "
    "scale counts."
)
TABLE1 = Definition(
    name="umm-csgm-table1",
    text="What reproduces Table 1 of UMM-CSGM, as far as the table itself tells. Axial "
    "slices 50 to 109 of 155, elsewhere those with brain on more than a fifth; the "
    "whole frame, the estimate 0 outside the brain. " + IN_GREY_LEVELS + " SSIM with "
    "the whole slice as one window (the only one within reach of the paper's numbers), "
    "and with Wang's 11 x 11 Gaussian window.",
    crop=None,
    scaling="truth's percentile",
    percentiles=(metrics.TABLE1.percentile,),
    peak=metrics.TABLE1.peak,
    background="0 outside the brain",
    slices=Slices(
        metrics.TABLE1.depth,
        metrics.TABLE1.first,
        metrics.TABLE1.last,
        metrics.TABLE1.brain_fraction,
    ),
    measures=(
        Measure("psnr", "psnr of slices", 255.0),
        Measure("ssim_global", "global ssim of slices", 255.0),
        Measure("ssim_wang", "gaussian ssim in the plane", 255.0),
        Measure("mae", "mae of slices", None),
    ),
)
MM_GAN = Definition(
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
HI_NET = Definition(
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
FAST_DDPM = Definition(
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
BRASYN = Definition(
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
VOLUME = Definition(
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


def _within(name: str, region: str, text: str) -> Definition:
    """The profile of the voxels of one region, of the volume at once."""
    return Definition(
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


BRAIN = _within("brain-only", "brain", "The voxels of the brain, and no others.")
TUMOUR = _within(
    "tumour",
    "tumour",
    "The voxels inside the segmentation, whatever their label; tumour-free subjects "
    "and those without a segmentation are skipped and counted.",
)
HEALTHY = _within(
    "healthy",
    "healthy",
    "The voxels of the brain outside the segmentation; subjects without a segmentation "
    "are skipped and counted.",
)
PROFILES = (*(TABLE1, MM_GAN, HI_NET, FAST_DDPM, BRASYN), *(BRAIN, VOLUME, TUMOUR, HEALTHY))
