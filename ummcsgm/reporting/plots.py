"""Calibration in pictures: curves, rank histograms, and maps of sd beside the error."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ummcsgm.reporting.figure import RESEARCH_ONLY
from ummcsgm.types import Array
from ummcsgm.utils.atomic_io import write_atomic

DPI = 150
SIDE = 3.0  # inches: a plot
LETTERS = 18  # an inch of caption
TILE = 150  # pixels: a narrower slice is enlarged, by a whole factor
GAP, HEAD, LEFT, BAR = 4, 40, 150, 110  # pixels
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
RELIABILITY = (
    "Voxels in bins of like predicted variance, chosen by one half of the draws and "
    "judged by the other. On the diagonal the spread is what it claims; above it the "
    "draws are too alike. Bars: a bootstrap over subjects. " + RESEARCH_ONLY
)
PREDICTED = (
    "Voxels in bins of like variance as the network's second head predicts it, and the "
    "squared error of its mean there. On the diagonal the one is the other's size; "
    "above it the prediction is too small. Bars: a bootstrap over subjects. " + RESEARCH_ONLY
)
RANKS = (
    "How often the truth has each rank among the draws, beside what calibrated draws "
    "give (line). A valley: draws too alike; a hill: too unlike; a slope: biased. "
    "Bars: a bootstrap over subjects. " + RESEARCH_ONLY
)
UNCERTAINTY = (
    "The images of a row have one grey window. The standard deviation of the draws "
    "and |error| of their mean have one colour scale for all rows: where draws are "
    "calibrated the one is the usual size of the other. Radiological convention: the "
    "patient's right (R) is on the left. " + RESEARCH_ONLY
)
CORONAL = (
    "A coronal plane through neighbouring slices, each of which the network drew by "
    "itself: a line of an image is a slice. The modality on the left is missing. One "
    "grey window, 0 to 255 of the truth. Superior is up, the patient's right (R) is "
    "on the left. " + RESEARCH_ONLY
)
DIAL = (
    "What more evaluations buy, on one network's weights and the same questions, "
    "within the brain. Of CRPS less is better, of PSNR more; a draw that is right has "
    "3 dB less PSNR than the mean. What is far worse is beyond the edge. " + RESEARCH_ONLY
)


@dataclass(frozen=True)
class Curve:
    """Points with intervals: [n] arrays, each interval from `low` to `high`."""

    expected: Array
    measured: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Uncertainty:
    """A slice of one modality with its draws: arrays [H, W] in RAS order, one unit.

    `draws` is [n, H, W]: those to be shown. `sd` is comparable with |truth - mean|.
    `top` is the white of the grey window, whose black is 0.
    """

    label: str
    truth: Array
    mean: Array
    draws: Array
    sd: Array
    top: float


def write_reliability(path: Path, curves: dict[str, Curve], unit: str, words: str) -> None:
    """`path` holds a PNG: root mean squared error over predicted sd, both in `unit`.

    Each curve, under its label, holds variances and mean squared errors, [bins].
    `words` are the caption: RELIABILITY of draws, PREDICTED of the variance head.
    """
    figure, (axes,) = _blank_plots(1, words, 1.5 * SIDE)
    for colour, (label, curve) in zip(COLOURS, curves.items(), strict=False):
        x, y = _root(curve.expected), _root(curve.measured)
        bars = np.stack([y - _root(curve.low), _root(curve.high) - y]).clip(0)
        style = dict(color=colour, marker="o", ms=4, lw=1.2, capsize=2)
        axes.errorbar(x, y, bars, label=label, **style)
    ends = [v for c in curves.values() for v in (c.expected, c.measured, c.high)]
    far = 1.05 * float(_root(np.max(np.concatenate(ends))))
    axes.plot([0, far], [0, far], color="0.4", lw=1, ls="--", label="calibrated")
    axes.set(xlim=(0, far), ylim=(0, far), aspect="equal")
    axes.set_xlabel(f"predicted standard deviation, {unit}", size=9)
    axes.set_ylabel(f"root mean squared error, {unit}", size=9)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    _save(figure, path)


def write_rank_histograms(path: Path, histograms: dict[str, Curve]) -> None:
    """`path` holds a PNG: a rank histogram a label, side by side on one scale.

    Each `Curve` has shares of the ranks 0 to K, [K + 1], that add up to 1.
    """
    figure, row = _blank_plots(len(histograms), RANKS, SIDE)
    highest = 1.25
    for axes, (label, shares) in zip(row, histograms.items(), strict=True):
        count = len(shares.measured)
        at, ratio = np.arange(count), shares.measured / shares.expected
        low, high = shares.low / shares.expected, shares.high / shares.expected
        bars = np.stack([ratio - low, high - ratio]).clip(0)
        axes.bar(at, ratio, width=0.9, color="tab:blue", alpha=0.6)
        axes.errorbar(at, ratio, bars, fmt="none", ecolor="0.2", lw=1, capsize=2)
        axes.axhline(1, color="tab:red", lw=1)
        axes.set_title(label, size=10)
        axes.set_xlabel(f"rank of the truth among {count - 1} draws", size=9)
        axes.set_xticks(at[:: max(1, count // 8)])
        highest = max(highest, 1.05 * float(np.max(high)))
    for axes in row:
        axes.set_ylim(0, highest)
    row[0].set_ylabel("share / calibrated share", size=9)
    _save(figure, path)


def write_uncertainty(path: Path, rows: Sequence[Uncertainty]) -> None:
    """`path` holds a PNG: a row each of truth, mean, draws, sd and absolute error."""
    limit = _common_limit(rows)
    heads = ["truth", "mean of draws"]
    heads += [f"draw {i + 1}" for i in range(len(rows[0].draws))]
    heads += ["sd of draws", "|error| of mean"]
    shape = rows[0].truth.shape
    figure, axes = _blank_tiles(len(rows), len(heads), shape, UNCERTAINTY)
    for tiles, row in zip(axes, rows, strict=True):
        for tile, image in zip(tiles, [row.truth, row.mean, *row.draws], strict=False):
            _show(tile, image, "gray", row.top)
        _show(tiles[-2], row.sd, "inferno", limit)
        _show(tiles[-1], np.abs(row.truth - row.mean), "inferno", limit)
        _label(tiles[0], row.label)
    _head(axes[0], heads)
    _add_colour_bar(figure, axes[:, -1])
    _save(figure, path)


def write_coronal(
    path: Path, rows: dict[str, Array], heads: Sequence[str], flatness: float
) -> None:
    """`path` holds a PNG: a row of images [n, Z, X] under each label, as `heads` name.

    In grey levels and RAS order. A slice is as thick as `flatness` pixels are wide.
    """
    _, depth, width = next(iter(rows.values())).shape
    factor = max(1, round(2 * TILE / width))
    shape = (max(1, round(factor * depth * flatness)), factor * width)
    figure, axes = _blank_tiles(len(rows), len(heads), shape, CORONAL)
    for tiles, (label, images) in zip(axes, rows.items(), strict=True):
        for tile, image in zip(tiles, images, strict=True):
            _show(tile, image, "gray", 255.0)
        _label(tiles[0], label)
    _head(axes[0], heads)
    _save(figure, path)


def write_dial(path: Path, curves: dict[str, Array], draws: int) -> None:
    """`path` holds a PNG: scores over evaluations a draw, a curve a sampler.

    Each curve is [n, 4]: evaluations, PSNR of a draw, PSNR of the mean of `draws`
    draws, CRPS. A curve of one point is a level to compare with, a dotted line.
    """
    figure, row = _blank_plots(3, DIAL, 1.2 * SIDE)
    heads = ("CRPS, grey levels", "PSNR of a draw, dB")
    heads += (f"PSNR of the mean of {draws} draws, dB",)
    for axes, head, column in zip(row, heads, (3, 1, 2), strict=True):
        for place, (label, points) in enumerate(curves.items()):
            style = dict(color=f"C{place}", label=label, lw=1.2)
            x, y = points[:, 0], points[:, column]
            if len(points) == 1:
                axes.axhline(y[0], ls=":", **style)
            else:
                axes.plot(x, y, marker="ov^s<D>pP*"[place % 10], ms=4, **style)
        values = np.concatenate([points[:, column] for points in curves.values()])
        least, most = float(np.min(values)), float(np.max(values))
        ends = (max(least, most - 6) - 0.3, most + 0.3)
        if column == 3:
            ends = (0.95 * least, 1.05 * min(most, 1.6 * least))
        axes.set(xscale="log", ylim=ends)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_title(head, size=10)
        axes.set_xlabel("network evaluations of a draw", size=9)
    row[0].legend(fontsize=7, edgecolor="none", framealpha=0.9, loc="upper right")
    _save(figure, path)


def _label(tile: Axes, label: str) -> None:
    """The name of a row, left of its first tile."""
    style = dict(size=9, rotation=0, ha="right", va="center")
    tile.set_ylabel(textwrap.fill(label, 12), **style)


def _head(tiles: Array, heads: Sequence[str]) -> None:
    """The names of columns above their first tiles, and the sides of the first."""
    for tile, head in zip(tiles, heads, strict=True):
        tile.set_title(head, size=9, pad=4)
    style = dict(size=7, color="w", xycoords="axes fraction")
    style |= dict(xytext=(0, -9), textcoords="offset points")
    tiles[0].annotate("R", (0.03, 1), **style)
    tiles[0].annotate("L", (0.97, 1), ha="right", **style)


def _root(values: Array) -> Array:
    return np.sqrt(np.clip(values, 0, None))


def _common_limit(rows: Sequence[Uncertainty]) -> float:
    """The top of the colour scale: 1 % of the tissue's errors and sds are beyond it."""
    maps = [(row.sd, np.abs(row.truth - row.mean), row.truth > 0) for row in rows]
    inside = [v[tissue] for sd, error, tissue in maps for v in (sd, error)]
    values = np.concatenate([*inside, np.zeros(1)])
    return float(max(np.percentile(values, 99), 1e-6))


def _show(axes: Axes, image: Array, colours: str, top: float) -> None:
    """An image [H, W] in RAS order as a radiologist sees it."""
    style = dict(cmap=colours, vmin=0, vmax=top, interpolation="nearest")
    axes.imshow(image[::-1, ::-1], aspect="auto", **style)


def _blank_plots(count: int, words: str, side: float) -> tuple[Figure, list[Axes]]:
    """A captioned figure with `count` plots of `side` inches side by side."""
    left, right, top, between, under = 0.7, 0.15, 0.35, 0.35, 0.55
    width = left + right + count * side + (count - 1) * between
    caption = textwrap.wrap(words, int(LETTERS * (width - 0.2)))
    foot = under + 0.14 * len(caption) + 0.1
    height = top + side + foot
    figure = _figure(width * DPI, height * DPI)
    lowest = (foot - under) / height
    figure.text(0.1 / width, lowest, "\n".join(caption), va="top", size=7)
    plots = []
    for place in range(count):
        x = (left + place * (side + between)) / width
        box = (x, foot / height, side / width, side / height)
        axes = figure.add_axes(box)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        plots.append(axes)
    return figure, plots


def _blank_tiles(
    rows: int, columns: int, shape: tuple[int, int], words: str
) -> tuple[Figure, Array]:
    """A captioned figure and axes [rows, columns] for images of `shape` in pixels."""
    factor = max(1, round(TILE / shape[1]))
    tall, wide = factor * shape[0], factor * shape[1]
    width = LEFT + columns * (wide + GAP) + BAR
    caption = textwrap.wrap(words, width // 8)
    foot = 20 + 19 * len(caption)
    height = HEAD + rows * (tall + GAP) + foot
    figure = _figure(width, height)
    figure.text(15 / width, (foot - 10) / height, "\n".join(caption), va="top", size=7)
    axes = np.empty((rows, columns), object)
    for r, c in np.ndindex(axes.shape):
        x = (LEFT + c * (wide + GAP)) / width
        y = 1 - (HEAD + r * (tall + GAP) + tall) / height
        axes[r, c] = figure.add_axes((x, y, wide / width, tall / height))
        axes[r, c].set(xticks=[], yticks=[], frame_on=False)
    return figure, axes


def _add_colour_bar(figure: Figure, tiles: Array) -> None:
    first, last = tiles[0].get_position(), tiles[-1].get_position()
    width = figure.bbox.width
    box = (first.x1 + 12 / width, last.y0, 16 / width, first.y1 - last.y0)
    scale = figure.add_axes(box)
    bar = figure.colorbar(tiles[0].images[0], cax=scale, extend="max", extendfrac=0.02)
    bar.set_label("sd and |error|, in the images' unit", size=8)
    scale.tick_params(labelsize=7)


def _figure(width: float, height: float) -> Figure:
    """An empty figure of so many pixels."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    write_atomic(path, content.getvalue())
