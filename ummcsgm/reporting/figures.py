"""Every figure: Figure 2, the preview of a subject, calibration plots and training curves.

Images are in RAS order, rows running to the anterior (or superior) and columns to the patient's
right, and are shown as a radiologist sees them. A slice is enlarged by a whole factor, pixel for
pixel: figures of slices are laid out in whole pixels.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import write_atomic

RESEARCH_ONLY = "For research only: not a medical device, not for clinical decisions."
MARK = "ummcsgm"  # in a preview's metadata: a file with it may be overwritten
DPI = 150
TILE = 150  # pixels: the least width of a slice
WIDE_TILE = 240  # pixels: about the width of a slice in which anatomy should be seen
TOP, LEFT, RIGHT, LINE = 66, 232, 124, 20  # pixels: titles, labels, colour bar, a caption's line
SMALL_TOP, SMALL_LEFT = 40, 150  # pixels: for column titles and modalities alone
GAP, METHOD_GAP, SUBJECT_GAP = 3, 12, 18  # pixels between tiles
MARGIN = 3  # pixels of background left around the brains
SIDE = 3.0  # inches: the side of a plot
CURVE_SIZE = (340, 210)  # units of the viewBox of a training curve
CURVE_POINTS = 300  # a longer curve is shown as the means of so many parts
CURVE_COLOURS = 6  # the variables --kind0 to --kind5 of report.css
Curve = dict[str, Array]  # "expected", "measured", and its interval, "low" and "high": [n] each
RIGHT_IS_LEFT = "Radiological convention: the patient's right (R) is on the left. " + RESEARCH_ONLY
FIGURE2 = (
    "In each column that modality is missing and the others are given. Every image has "
    "the grey window 0 to 255 of the truth volume. |error| is |synthesis − truth| in "
    "those grey levels, and the number on it its mean over the whole slice, background "
    "included. Axial slices in radiological convention: anterior is up, the patient's "
    "right (R) is on the left. " + RESEARCH_ONLY
)
PREVIEW = (
    "All images have one grey window, from 0 to twice the median of the modality's tissue. "
    + RIGHT_IS_LEFT
)
RELIABILITY = (
    "Voxels in bins of similar predicted variance, chosen by one half of the draws and "
    "measured by the other. On the diagonal the spread is what it claims; above it the "
    "draws are too alike. Bars: a bootstrap over subjects. " + RESEARCH_ONLY
)
PREDICTED = (
    "Voxels in bins of similar variance as the network's second head predicts it, and the "
    "squared error of its mean there. On the diagonal the two are equal; above it the "
    "prediction is too small. Bars: a bootstrap over subjects. " + RESEARCH_ONLY
)
RANKS = (
    "How often the truth has each rank among the draws, relative to calibrated draws "
    "(line). A valley: draws too alike; a hill: too unlike; a slope: biased. "
    "Bars: a bootstrap over subjects. " + RESEARCH_ONLY
)
STRUCTURE = (
    "Left: the power of draws over that of truths, both about the network's own mean, by spatial "
    "frequency. Right: the spread of the means of blocks over their error. At 1 draws vary as "
    "truths do at that scale; below it they are too alike. Shaded: 0.8 to 1.2. Bars: 90 % of a "
    "bootstrap over subjects. " + RESEARCH_ONLY
)
LESIONS = (
    "Left: where draws say with some probability that a lesion enhances on T1c, how often it does; "
    "the size of a point is the number of lesions, the bar 90 % of a bootstrap over subjects, and "
    "the diagonal is right. Right: the 90th percentile of each lesion in units of the brain's "
    "median, of truths, of the network's mean and of all draws: draws should scatter as truths do. "
    + RESEARCH_ONLY
)
LEARNING_SPEED = (
    "R_k(tau): the squared error of k x k block means of the denoised images over that of the "
    "network's own mean; 1 says nothing is read in the noisy image. Dotted: a denoiser that is "
    "told each block's own squared deviation, no bound. " + RESEARCH_ONLY
)
WANTED = (0.8, 1.2)  # shaded in the figure of the structure
TWO_SAMPLE = (
    "The patches of test subjects that the classifier is surest of, one a subject: it finds those "
    "on the left, which are draws, most drawn, and those on the right, truths, most real. Below "
    "each: what remains less the network's own mean, grey where that is 0, in one window for all "
    "of a modality. " + RESEARCH_ONLY
)
UNCERTAINTY = (
    "All images have the grey window 0 to 255 of the truth. The standard deviation of the draws "
    "and |error| of their mean have one colour scale for all rows: where draws are "
    "calibrated the first is the usual size of the second. " + RIGHT_IS_LEFT
)
CORONAL = (
    "A coronal plane through neighbouring slices, each of which the network drew on its own: "
    "a line of an image is a slice. The modality on the left is missing. One "
    "grey window, 0 to 255 of the truth. Superior is up, the patient's right (R) is "
    "on the left. " + RESEARCH_ONLY
)
DIAL = (
    "What more evaluations buy, with one network's weights and the same slices, "
    "within the brain. Of CRPS less is better, of PSNR more; a calibrated draw has "
    "3 dB less PSNR than the mean. What is far worse is beyond the edge. " + RESEARCH_ONLY
)


@dataclass(frozen=True)
class Panels:
    """The slices of Figure 2: P subjects, M modalities, grey levels 0 to 255.

    Arrays are [P, M, H, W]. `estimates` has each method's array under the label to print.
    """

    subjects: tuple[str, ...]
    modalities: tuple[str, ...]
    truth: Array
    estimates: dict[str, Array]


@dataclass(frozen=True)
class Preview:
    """One slice of a completed subject: images [M, H, W], 1/2 is tissue, and which of the M
    modalities are synthetic."""

    title: str
    modalities: tuple[str, ...]
    images: Array
    synthetic: tuple[bool, ...]


def check_preview(path: Path) -> None:
    """Raises InputError if `path` is a file that `write_preview` did not write."""
    if path.exists() and MARK.encode() not in path.read_bytes()[:1024]:
        raise InputError(f"{path} is there and is no preview: choose another --output.")


def write_preview(path: Path, preview: Preview) -> None:
    """Writes a PNG of the given and the synthetic images in one row.

    One grey window for all: 0 to 1, which is twice the median tissue of each.
    """
    images = preview.images[None]
    images = images[:, :, *brain_box(images)]
    figure, axes = _tile_figure(
        1, len(preview.modalities), images.shape[2:], PREVIEW, left=LINE, tile=2 * TILE
    )
    for modality, tile, image, synthetic in zip(
        preview.modalities, axes[0], images[0], preview.synthetic, strict=True
    ):
        _show(tile, image, "gray", 1)
        colour = "tab:red" if synthetic else "black"
        title = f"{modality}, synthetic" if synthetic else modality
        tile.set_title(title, size=10, color=colour, pad=4)
    _mark_sides(axes[0, 0])
    top = 1 - 8 / figure.bbox.height
    style = dict(ha="left", va="top", size=11, weight="bold")
    figure.text(LINE / figure.bbox.width, top, preview.title, **style)
    _save(figure, path)


def write_figure(path: Path, panels: Panels) -> None:
    """Writes a PNG like the paper's Figure 2: truth above, then every method.

    Columns are the modalities of each subject, side by side; below a method's synthesis
    is the map of its absolute error, in one colour scale for all.
    """
    errors = {k: np.abs(v - panels.truth) for k, v in panels.estimates.items()}
    limit = error_limit(panels.truth, list(errors.values()))
    box = brain_box(panels.truth)
    subjects, modalities, height, width = panels.truth[:, :, *box].shape
    rows, columns = 1 + 2 * len(errors), subjects * modalities
    figure, axes = _tile_figure(
        rows,
        columns,
        (height, width),
        FIGURE2,
        row_gaps=(np.arange(rows) + 1) // 2 * METHOD_GAP,
        column_gaps=np.arange(columns) // modalities * SUBJECT_GAP,
    )
    axes = axes.reshape(rows, subjects, modalities)

    def show_row(tiles: Array, label: str, images: Array, colours: str, top: float) -> None:
        for index in np.ndindex(tiles.shape):
            _show(tiles[index], images[(*index, *box)], colours, top)
        _label_row(tiles[0, 0], label, 20)

    show_row(axes[0], "truth", panels.truth, "gray", 255)
    for label, synthesis, error in zip(errors, axes[1::2], axes[2::2], strict=True):
        show_row(synthesis, label, panels.estimates[label], "gray", 255)
        show_row(error, "|error|", errors[label], "inferno", limit)
        for index in np.ndindex(error.shape):
            mean = f"{errors[label][index].mean():.1f}"
            style = dict(ha="right", size=7, color="w", transform=error[index].transAxes)
            error[index].text(0.98, 0.02, mean, **style)
    for subject, tiles in zip(panels.subjects, axes[0], strict=True):
        _title_columns(tiles, panels.modalities)
        first, last = tiles[0].get_position(), tiles[-1].get_position()
        style = dict(ha="center", va="top", size=11, weight="bold")
        top = 1 - 8 / figure.bbox.height
        figure.text((first.x0 + last.x1) / 2, top, subject, **style)
    _mark_sides(axes[0, 0, 0])
    if errors:
        tiles = axes[1, -1, -1], axes[-1, -1, -1]
        _add_colour_bar(figure, *tiles, "|error|, grey levels of 0 to 255")
    _save(figure, path)


def write_uncertainty(path: Path, modalities: Sequence[str], images: dict[str, Array]) -> None:
    """Writes a PNG: for each modality a row of truth, mean, draws, sd and absolute error.

    Images are in grey levels, [M, H, W]; `draws` are [M, n, H, W]. `sd` is comparable with
    |truth - mean|.
    """
    rows, columns = brain_box(images["truth"][None])
    images = {name: array[..., rows, columns] for name, array in images.items()}
    truth, mean, draws, sd = (images[name] for name in ("truth", "mean", "draws", "sd"))
    error = np.abs(truth - mean)
    limit = error_limit(truth, [sd, error])
    names = [f"draw {k + 1}" for k in range(draws.shape[1])]
    titles = ["truth", "mean of draws", *names, "sd of draws", "|error| of mean"]
    figure, axes = _tile_figure(
        *(len(truth), len(titles), truth.shape[1:], UNCERTAINTY),
        **dict(left=SMALL_LEFT, top=SMALL_TOP, tile=WIDE_TILE),
    )
    for m, (tiles, modality) in enumerate(zip(axes, modalities, strict=True)):
        for tile, image in zip(tiles, [truth[m], mean[m], *draws[m]], strict=False):
            _show(tile, image, "gray", 255)
        _show(tiles[-2], sd[m], "inferno", limit)
        _show(tiles[-1], error[m], "inferno", limit)
        _label_row(tiles[0], modality, 12)
    _title_columns(axes[0], titles)
    _mark_sides(axes[0, 0])
    _add_colour_bar(figure, axes[0, -1], axes[-1, -1], "sd and |error|, grey levels")
    _save(figure, path)


def write_two_sample(path: Path, patches: dict[str, dict[str, Array]]) -> None:
    """Writes a PNG: for each modality the patches `drawn` and `real` [n, H, W] in grey levels,
    and below them `drawn_residual` and `real_residual`."""
    most = max(len(group) for images in patches.values() for group in images.values())
    shape = next(iter(patches.values()))["drawn"].shape[1:]
    figure, axes = _tile_figure(
        *(2 * len(patches), 2 * most, shape, TWO_SAMPLE),
        left=SMALL_LEFT,
        top=SMALL_TOP,
        tile=TILE // 2,
        row_gaps=np.arange(2 * len(patches)) // 2 * METHOD_GAP,
        column_gaps=np.arange(2 * most) // most * METHOD_GAP,
    )
    for rows, (modality, images) in zip(axes.reshape(-1, 2, 2, most), patches.items(), strict=True):
        residuals = images["drawn_residual"], images["real_residual"]
        limit = max(float(np.percentile(np.abs(np.concatenate(residuals)), 99)), 1.0)
        for column, name in enumerate(("drawn", "real")):
            for tile, image in zip(rows[0, column], images[name], strict=False):
                _show(tile, image, "gray", 255)
            for tile, image in zip(rows[1, column], residuals[column], strict=False):
                _show(tile, image + limit, "gray", 2 * limit)
        _label_row(rows[0, 0, 0], modality, 12)
        _label_row(rows[1, 0, 0], "less the mean", 12)
    for column, title in ((0, "draws"), (most, "truths")):
        axes[0, column].set_title(title, size=10, loc="left")
    _save(figure, path)


def write_coronal(
    path: Path, rows: dict[str, Array], titles: Sequence[str], slice_thickness: float
) -> None:
    """Writes a PNG: a row of images [n, Z, X] in grey levels for each label, under `titles`.

    `slice_thickness` is in pixels along x.
    """
    _, depth, width = next(iter(rows.values())).shape
    factor = max(1, round(2 * TILE / width))
    shape = (max(1, round(factor * depth * slice_thickness)), factor * width)
    figure, axes = _tile_figure(
        len(rows), len(titles), shape, CORONAL, left=SMALL_LEFT, top=SMALL_TOP, tile=shape[1]
    )
    for tiles, (label, images) in zip(axes, rows.items(), strict=True):
        for tile, image in zip(tiles, images, strict=True):
            _show(tile, image, "gray", 255)
        _label_row(tiles[0], label, 12)
    _title_columns(axes[0], titles)
    _mark_sides(axes[0, 0])
    _save(figure, path)


def write_reliability(path: Path, curves: dict[str, Curve], unit: str, caption: str) -> None:
    """Writes a PNG: root mean squared error over predicted sd, both in `unit`.

    Each curve, under its label, holds variances and mean squared errors, [bins]. The
    caption is RELIABILITY for draws, PREDICTED for the variance head.
    """
    figure, (axes,) = _plot_figure(1, caption, 1.5 * SIDE)
    for number, (label, curve) in enumerate(curves.items()):
        x, y = _root(curve["expected"]), _root(curve["measured"])
        bars = np.stack([y - _root(curve["low"]), _root(curve["high"]) - y]).clip(0)
        style = dict(color=f"C{number}", marker="o", ms=4, lw=1.2, capsize=2)
        axes.errorbar(x, y, bars, label=label, **style)
    ends = [v for c in curves.values() for v in (c["expected"], c["measured"], c["high"])]
    far = 1.05 * float(_root(np.max(np.concatenate(ends))))
    axes.plot([0, far], [0, far], color="0.4", lw=1, ls="--", label="calibrated")
    axes.set(xlim=(0, far), ylim=(0, far), aspect="equal")
    axes.set_xlabel(f"predicted standard deviation, {unit}", size=9)
    axes.set_ylabel(f"root mean squared error, {unit}", size=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _save(figure, path)


def write_rank_histograms(path: Path, histograms: dict[str, Curve]) -> None:
    """Writes a PNG: a rank histogram for each label, side by side on one scale.

    Each `Curve` has shares of the ranks 0 to K, [K + 1], that add up to 1.
    """
    figure, row = _plot_figure(len(histograms), RANKS, SIDE)
    highest = 1.25
    for axes, (label, shares) in zip(row, histograms.items(), strict=True):
        count = len(shares["measured"])
        ranks, ratio = np.arange(count), shares["measured"] / shares["expected"]
        low, high = shares["low"] / shares["expected"], shares["high"] / shares["expected"]
        bars = np.stack([ratio - low, high - ratio]).clip(0)
        axes.bar(ranks, ratio, width=0.9, color="tab:blue", alpha=0.6)
        axes.errorbar(ranks, ratio, bars, fmt="none", ecolor="0.2", lw=1, capsize=2)
        axes.axhline(1, color="tab:red", lw=1)
        axes.set_title(label, size=10)
        axes.set_xlabel(f"rank of the truth among {count - 1} draws", size=9)
        axes.set_xticks(ranks[:: max(1, count // 8)])
        highest = max(highest, 1.05 * float(np.max(high)))
    for axes in row:
        axes.set_ylim(0, highest)
    row[0].set_ylabel("share / calibrated share", size=9)
    _save(figure, path)


def write_structure(path: Path, structures: dict[str, dict]) -> None:
    """Writes a PNG: power ratio over bands and spread-skill over block sizes, a curve a label.

    A structure has rows `power` (band, ratio) and `blocks` (size, spread_skill), each number with
    its _low and _high; None and NaN are not drawn.
    """
    figure, row = _plot_figure(2, STRUCTURE, 1.4 * SIDE)
    titles = "power of draws / of truths", "spread-skill ratio of block means"
    labels = "cycles a pixel", "pixels a side of a block"
    parts = ("power", "band", "ratio"), ("blocks", "size", "spread_skill")
    for axes, title, label, (part, scale, score) in zip(row, titles, labels, parts, strict=True):
        drawn = [1 / 1.3, 1.3]
        for number, (name, structure) in enumerate(structures.items()):
            rows = structure[part]
            low, y, high = (
                np.array([values[f"{score}{end}"] for values in rows], float)
                for end in ("_low", "", "_high")
            )
            x = np.arange(len(rows)) + 0.08 * (number - (len(structures) - 1) / 2)
            style = dict(color=f"C{number}", marker="o", ms=4, lw=1.2, capsize=2)
            axes.errorbar(x, y, np.stack([y - low, high - y]).clip(0), label=name, **style)
            drawn += [value for value in (*y, *low, *high) if value > 0]
        axes.axhspan(*WANTED, color="0.5", alpha=0.15, lw=0)
        axes.axhline(1, color="0.4", lw=1, ls="--")
        axes.set_xticks(range(len(rows)), [str(values[scale]) for values in rows])
        if score == "ratio":  # of powers, which may differ a hundredfold
            axes.set(yscale="log", ylim=(0.9 * min(drawn), 1.1 * max(drawn)))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(0, 1.05 * max(drawn))
        axes.set_title(title, size=10)
        axes.set_xlabel(label, size=9)
    row[0].legend(fontsize=8, frameon=False, loc="best")
    _save(figure, path)


def write_lesions(path: Path, bins: list[dict], percentiles: dict[str, dict[str, Array]]) -> None:
    """Writes a PNG: the reliability of P(it enhances), and percentiles of lesions in strips.

    `bins` have lesions, probability, frequency and its _low and _high; without any there are strips
    alone. `percentiles` are [n] by modality, then by image ("truth", "mean", "draws").
    """
    figure, row = _plot_figure(1 + bool(bins), LESIONS, 1.4 * SIDE)
    if bins:
        axes = row[0]
        x, y, low, high, number = (
            np.array([b[name] for b in bins])
            for name in ("probability", "frequency", "frequency_low", "frequency_high", "lesions")
        )
        axes.plot([0, 1], [0, 1], color="0.4", lw=1, ls="--")
        bars = np.stack([y - low, high - y]).clip(0)
        axes.errorbar(x, y, bars, fmt="none", ecolor="C0", lw=1.2, capsize=2)
        axes.scatter(x, y, 12 + 120 * number / number.max(), color="C0", alpha=0.7, lw=0)
        axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
        axes.set_title("does a lesion enhance?", size=10)
        axes.set_xlabel("probability by the draws", size=9)
        axes.set_ylabel("frequency among truths", size=9)
    generator = np.random.default_rng(0)  # sideways, so that points do not hide each other
    axes, colours = row[-1], {"truth": "C0", "mean": "0.4", "draws": "C1"}
    for place, images in enumerate(percentiles.values()):
        for offset, (name, colour) in zip((-0.28, 0, 0.28), colours.items(), strict=True):
            x = place + offset + generator.uniform(-0.09, 0.09, len(images[name]))
            label = name if place == 0 else None
            axes.plot(x, images[name], ".", color=colour, ms=3, alpha=0.6, label=label)
            middle = np.median(images[name])
            axes.plot([place + offset - 0.12, place + offset + 0.12], [middle] * 2, color="k", lw=1)
    axes.set_xticks(range(len(percentiles)), percentiles)
    axes.set_title("90th percentile of a lesion / brain's median", size=10)
    axes.legend(fontsize=8, frameon=False, loc="best")
    _save(figure, path)


def write_dial(path: Path, curves: dict[str, Array], draws: int) -> None:
    """Writes a PNG: scores over evaluations per draw, a curve for each sampler.

    Each curve is [n, 4]: evaluations, PSNR of a draw, PSNR of the mean of `draws`
    draws, CRPS. A curve of one point is a reference level, a dotted line.
    """
    figure, row = _plot_figure(3, DIAL, 1.2 * SIDE)
    titles = ("CRPS, grey levels", "PSNR of a draw, dB")
    titles += (f"PSNR of the mean of {draws} draws, dB",)
    for axes, title, column in zip(row, titles, (3, 1, 2), strict=True):
        for number, (label, points) in enumerate(curves.items()):
            style = dict(color=f"C{number}", label=label, lw=1.2)
            x, y = points[:, 0], points[:, column]
            if len(points) == 1:
                axes.axhline(y[0], ls=":", **style)
            else:
                axes.plot(x, y, marker="ov^s<D>pP*"[number % 10], ms=4, **style)
        values = np.concatenate([points[:, column] for points in curves.values()])
        least, most = float(np.min(values)), float(np.max(values))
        ends = (max(least, most - 6) - 0.3, most + 0.3)
        if column == 3:
            ends = (0.95 * least, 1.05 * min(most, 1.6 * least))
        axes.set(xscale="log", ylim=ends)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(title, size=10)
        axes.set_xlabel("network evaluations of a draw", size=9)
    row[0].legend(fontsize=7, edgecolor="none", framealpha=0.9, loc="upper right")
    _save(figure, path)


def write_learning_speed(path: Path, panels: dict[tuple[str, str], dict[str, Array]]) -> None:
    """Writes a PNG: a row of plots for each quantity and a column for each modality.

    `panels` by (quantity, modality) have by preconditioning a curve [n, 3]: seconds of training,
    the ratio, and its reference, of which the last is a dotted line.
    """
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*panels, strict=True))
    side, left, foot, top = 2.2, 0.6, 0.9, 0.3
    width, height = left + 0.1 + side * len(columns), foot + top + side * len(rows)
    figure = _empty_figure(width, height)
    plots = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left / width, foot / height, 1 - 0.1 / width, 1 - top / height, 0.12, 0.12
    )
    for (quantity, modality), curves in panels.items():
        row, column = rows.index(quantity), columns.index(modality)
        axes = plots[row, column]
        for number, (label, points) in enumerate(curves.items()):
            axes.plot(
                points[:, 0], points[:, 1], color=f"C{number}", label=label, lw=1.2, marker="."
            )
            axes.axhline(points[-1, 2], color=f"C{number}", ls=":", lw=1)
        axes.axhline(1, color="0.7", lw=0.8)
        axes.set_ylim(0, 1.2)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if row == 0:
            axes.set_title(modality, size=10)
        if column == 0:
            axes.set_ylabel(quantity, size=9)
        if row == len(rows) - 1:
            axes.set_xlabel("seconds of training", size=9)
    plots[0, 0].legend(fontsize=7, edgecolor="none", framealpha=0.9)
    caption = textwrap.wrap(LEARNING_SPEED, int(18 * (width - 0.2)))
    figure.text(0.1 / width, (foot - 0.45) / height, "\n".join(caption), va="top", size=7)
    _save(figure, path)


def training_curves_svg(title: str, curves: dict[str, Array]) -> str:
    """An inline SVG of loss over step for curves [n, 2] of steps and losses.

    Losses that differ more than tenfold have a logarithmic scale. Colours are variables
    of report.css, so that the page's light and dark themes apply.
    """
    curves = {label: thin_curve(points) for label, points in curves.items()}
    losses = np.concatenate([points[:, 1] for points in curves.values()])
    figure = Figure(figsize=(CURVE_SIZE[0] / 72, CURVE_SIZE[1] / 72))
    axes = figure.add_axes((0.17, 0.2, 0.79, 0.75))
    # matplotlib knows no CSS variables: each colour stands for one until the end.
    variables = {"#0000f0": "--text", "#0000f1": "--dim", "#0000f2": "--line"}
    text, dim, line = variables
    for number, points in enumerate(curves.values()):
        colour = f"#0000e{number % CURVE_COLOURS}"
        variables[colour] = f"--kind{number % CURVE_COLOURS}"
        axes.plot(*points.T, color=colour, lw=1.6)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=line)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(dim)
    if losses.min() > 0 and losses.max() > 10 * losses.min():
        axes.set_yscale("log")
        steps = (1, 2, 5) if losses.max() < 300 * losses.min() else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(which="both", color=dim, labelcolor=text, labelsize=13)
    axes.set_xlabel("step", color=text, size=13, loc="right", labelpad=0)
    figure.text(0.01, 0.02, "loss", color=text, size=13)
    content = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": title}
    ):  # ids of a page differ
        figure.savefig(content, format="svg", transparent=True, metadata=no_metadata)
    return _inline_svg(content.getvalue(), variables)


def thin_curve(points: Array) -> Array:
    """At most CURVE_POINTS points [n, 2]: these, or the means of as many parts of them."""
    if len(points) <= CURVE_POINTS:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, CURVE_POINTS)])


def error_limit(truth: Array, errors: Sequence[Array]) -> int:
    """The top of a colour scale in tens of grey levels: 1 % of the errors in the brain, where
    the truth is above 0, are beyond it."""
    inside = [np.zeros(1), *(error[truth > 0] for error in errors)]
    high = np.percentile(np.concatenate(inside), 99)
    return int(np.clip(10 * np.ceil(high / 10), 10, 255))


def brain_box(truth: Array) -> tuple[slice, slice]:
    """The rows and columns that hold every brain in [., ., H, W], with a margin."""
    rows, columns = np.nonzero((truth > 0).any(axis=(0, 1)))
    if len(rows) == 0:
        return slice(None), slice(None)
    return tuple(slice(max(0, k.min() - MARGIN), k.max() + 1 + MARGIN) for k in (rows, columns))


def _inline_svg(svg: str, variables: dict[str, str]) -> str:
    """matplotlib's SVG as HTML embeds it: no XML header, namespaces, global style, clip paths
    or ids that nothing refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<clipPath.*?</defs>| clip-path=\"[^\"]*\"", "", svg, flags=re.S)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in variables.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r"\s*\n\s*", " ", svg).strip()


def _show(axes: Axes, image: Array, colours: str, top: float) -> None:
    """Shows an image [H, W] in RAS order as a radiologist sees it, black at 0."""
    style = dict(cmap=colours, vmin=0, vmax=top, interpolation="nearest")
    axes.imshow(image[::-1, ::-1], aspect="auto", **style)


def _label_row(tile: Axes, label: str, letters: int) -> None:
    """Writes a row's label left of its first tile."""
    lines = (textwrap.fill(part, letters) for part in label.replace(", ", ",\n").split("\n"))
    tile.set_ylabel("\n".join(lines), rotation=0, ha="right", va="center", size=9)


def _title_columns(tiles: Sequence[Axes], titles: Sequence[str]) -> None:
    for tile, title in zip(tiles, titles, strict=True):
        tile.set_title(title, size=9, pad=4)


def _mark_sides(tile: Axes) -> None:
    """Marks the patient's right and left on one tile."""
    style = dict(size=7, color="w", xycoords="axes fraction")
    style |= dict(xytext=(0, -9), textcoords="offset points")
    tile.annotate("R", (0.03, 1), **style)
    tile.annotate("L", (0.97, 1), ha="right", **style)


def _add_colour_bar(figure: Figure, first: Axes, last: Axes, label: str) -> None:
    """Adds the colour scale of the map in `last`, right of the tiles `first` to `last`."""
    top, bottom = first.get_position(), last.get_position()
    width = figure.bbox.width
    box = (bottom.x1 + LINE / width, bottom.y0, LINE / width, top.y1 - bottom.y0)
    scale = figure.add_axes(box)
    bar = figure.colorbar(last.images[0], cax=scale, extend="max", extendfrac=0.02)
    bar.set_label(label, size=9)
    scale.tick_params(labelsize=8)


def _tile_figure(
    rows: int,
    columns: int,
    shape: tuple[int, int],
    words: str,
    *,
    left: int = LEFT,
    top: int = TOP,
    tile: int = TILE,
    row_gaps: Array | int = 0,
    column_gaps: Array | int = 0,
) -> tuple[Figure, Array]:
    """A captioned figure and its empty axes [rows, columns] for images of `shape` pixels,
    enlarged to about `tile` pixels of width. Gaps are cumulative, in pixels."""
    factor = max(1, round(tile / shape[1]))
    tall, wide = factor * shape[0], factor * shape[1]
    x = left + np.arange(columns) * (wide + GAP) + column_gaps
    y = top + np.arange(rows) * (tall + GAP) + row_gaps
    width, bottom = x[-1] + wide + RIGHT, y[-1] + tall
    caption = textwrap.wrap(words, width // 9)  # pixels a letter
    height = bottom + 2 * LINE + LINE * len(caption)
    figure = _empty_figure(width / DPI, height / DPI)
    caption_top = 1 - (bottom + LINE) / height
    figure.text(LINE / width, caption_top, "\n".join(caption), va="top", size=8)
    axes = np.empty((rows, columns), object)
    for r, c in np.ndindex(axes.shape):
        low = 1 - (y[r] + tall) / height
        axes[r, c] = figure.add_axes((x[c] / width, low, wide / width, tall / height))
        axes[r, c].set(xticks=[], yticks=[], frame_on=False)
    return figure, axes


def _plot_figure(count: int, words: str, side: float) -> tuple[Figure, list[Axes]]:
    """A captioned figure with `count` plots of `side` inches side by side."""
    left, right, top, between, under = 0.7, 0.15, 0.35, 0.35, 0.55
    width = left + right + count * side + (count - 1) * between
    caption = textwrap.wrap(words, int(18 * (width - 0.2)))  # letters an inch
    foot = under + 0.14 * len(caption) + 0.1
    height = top + side + foot
    figure = _empty_figure(width, height)
    caption_top = (foot - under) / height
    figure.text(0.1 / width, caption_top, "\n".join(caption), va="top", size=7)
    plots = []
    for number in range(count):
        x = (left + number * (side + between)) / width
        axes = figure.add_axes((x, foot / height, side / width, side / height))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        plots.append(axes)
    return figure, plots


def _empty_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _root(values: Array) -> Array:
    return np.sqrt(np.clip(values, 0, None))


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": MARK})
    write_atomic(path, content.getvalue())
