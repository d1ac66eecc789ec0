"""The paper's figure 2: truth above, below it each method's synthesis and error."""

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import write_atomic

RESEARCH_ONLY = "For research only: not a medical device, not for clinical decisions."
MARK = "ummcsgm"  # in a picture's metadata: it is ours to write again
# The figure is laid out in whole pixels: a slice that is resampled is not crisp.
DPI = 150
TILE = 150  # a narrower slice is enlarged, by a whole factor
LEFT, TOP, RIGHT, LINE = 232, 66, 124, 20  # for labels, colour bar, line of caption
GAP, METHOD_GAP, SUBJECT_GAP = 3, 12, 18  # between tiles
MARGIN = 3  # background kept around the brains
CAPTION = (
    "In each column that modality is missing and the others are given. Every image has "
    "the grey window 0 to 255 of the truth volume. |error| is |synthesis − truth| in "
    "those grey levels, and the number on it its mean over the whole slice, background "
    "included. Axial slices in radiological convention: anterior is up, the patient's "
    "right (R) is on the left. " + RESEARCH_ONLY
)
PREVIEW = (
    "All images have one grey window, from 0 to twice the median of the modality's "
    "tissue. Radiological convention: the patient's right (R) is on the left. " + RESEARCH_ONLY
)


@dataclass(frozen=True)
class Panels:
    """The slices of a figure: P subjects, M modalities, grey levels 0 to 255.

    Arrays are [P, M, H, W] in RAS order: rows run to the anterior, columns to the
    patient's right. `estimates` has each method's array under the label to print.
    """

    subjects: tuple[str, ...]
    modalities: tuple[str, ...]
    truth: Array
    estimates: dict[str, Array]


@dataclass(frozen=True)
class Preview:
    """One slice of a completed subject: images [M, H, W] in RAS order, 1/2 is tissue,
    and which of the M modalities are synthetic."""

    title: str
    modalities: tuple[str, ...]
    images: Array
    synthetic: tuple[bool, ...]


def check_preview(path: Path) -> None:
    """Raises InputError if a file is at `path` that is not one of these pictures."""
    if path.exists() and MARK.encode() not in path.read_bytes()[:1024]:
        raise InputError(f"{path} is there and is no preview: choose another --output.")


def write_preview(path: Path, preview: Preview) -> None:
    """`path` holds a PNG of the given and the synthetic images in one row.

    One grey window for all: 0 to 1, which is twice the median tissue of each.
    """
    shown = preview.images[None]
    shown = shown[:, :, *_brain_box(shown)]
    figure, axes = _blank_figure(1, shown.shape, PREVIEW, (LINE, 2 * TILE))
    for place, tile in enumerate(axes[0, 0]):
        synthetic, name = preview.synthetic[place], preview.modalities[place]
        style = dict(cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        tile.imshow(shown[0, place][::-1, ::-1], aspect="auto", **style)
        colour = "tab:red" if synthetic else "black"
        title = f"{name}, synthetic" if synthetic else name
        tile.set_title(title, size=10, color=colour, pad=4)
    _write_on(axes[0, 0, 0], 0.06, 0.92, "R")
    _write_on(axes[0, 0, 0], 0.98, 0.92, "L")
    top = 1 - 8 / figure.bbox.height
    name = dict(ha="left", va="top", size=11, weight="bold")
    figure.text(LINE / figure.bbox.width, top, preview.title, **name)
    _save(figure, path)


def write_figure(path: Path, panels: Panels) -> None:
    """`path` holds a PNG like the paper's figure 2: truth above, then every method.

    Columns are the modalities of each subject, side by side; below a method's synthesis
    is the map of its absolute error, in one colour scale for all.
    """
    errors = {k: np.abs(v - panels.truth) for k, v in panels.estimates.items()}
    limit = _error_limit(panels.truth, list(errors.values()))
    box = _brain_box(panels.truth)
    rows = 1 + 2 * len(errors)
    figure, axes = _blank_figure(rows, panels.truth[:, :, *box].shape, CAPTION, (LEFT, TILE))
    _show(axes[0], "truth", panels.truth[:, :, *box], "gray", 255)
    for label, synthesis, error in zip(errors, axes[1::2], axes[2::2], strict=True):
        _show(synthesis, label, panels.estimates[label][:, :, *box], "gray", 255)
        _show(error, "|error|", errors[label][:, :, *box], "inferno", limit)
        for tile in np.ndindex(error.shape):
            _write_on(error[tile], 0.98, 0.02, f"{errors[label][tile].mean():.1f}")
    _label_columns(figure, axes[0], panels)
    if errors:
        _add_colour_bar(figure, axes)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": MARK})
    write_atomic(path, content.getvalue())


def _show(axes: Array, label: str, images: Array, colours: str, top: float) -> None:
    """Images [P, M, H, W] on a row of axes [P, M], as a radiologist sees them."""
    style = dict(cmap=colours, vmin=0, vmax=top, interpolation="nearest")
    for tile in np.ndindex(axes.shape):
        axes[tile].imshow(images[tile][::-1, ::-1], aspect="auto", **style)
    lines = (textwrap.fill(part, 20) for part in label.replace(", ", ",\n").split("\n"))
    style = dict(rotation=0, ha="right", va="center", size=9)
    axes[0, 0].set_ylabel("\n".join(lines), **style)


def _error_limit(truth: Array, errors: list[Array]) -> float:
    """The top of the colour scale: 1 % of the errors in the brains are beyond it."""
    inside = [np.zeros(1), *(error[truth > 0] for error in errors)]
    high = np.percentile(np.concatenate(inside), 99)
    return float(np.clip(10 * np.ceil(high / 10), 10, 255))


def _brain_box(truth: Array) -> tuple[slice, slice]:
    """The rows and columns of all brains together, with a margin."""
    rows, columns = np.nonzero((truth > 0).any(axis=(0, 1)))
    if len(rows) == 0:
        return slice(None), slice(None)
    return tuple(slice(max(0, at.min() - MARGIN), at.max() + 1 + MARGIN) for at in (rows, columns))


def _blank_figure(
    rows: int, shape: tuple[int, int, int, int], words: str, sizes: tuple[int, int]
) -> tuple[Figure, Array]:
    """A captioned figure and its empty axes [rows, P, M], for tiles of [P, M, H, W].

    `sizes` are the room left of the tiles and their least width, in pixels.
    """
    subjects, modalities, tall, wide = shape
    left, tile = sizes
    factor = max(1, round(tile / wide))
    tall, wide = factor * tall, factor * wide
    across, down = np.arange(subjects * modalities), np.arange(rows)
    x = left + across * (wide + GAP) + across // modalities * SUBJECT_GAP
    y = TOP + down * (tall + GAP) + (down + 1) // 2 * METHOD_GAP
    width, bottom = x[-1] + wide + RIGHT, y[-1] + tall
    caption = textwrap.wrap(words, width // 9)  # pixels a letter
    height = bottom + 2 * LINE + LINE * len(caption)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    top = 1 - (bottom + LINE) / height
    figure.text(LINE / width, top, "\n".join(caption), va="top", size=8)
    axes = np.empty((rows, len(x)), object)
    for r, c in np.ndindex(axes.shape):
        low = 1 - (y[r] + tall) / height
        axes[r, c] = figure.add_axes((x[c] / width, low, wide / width, tall / height))
        axes[r, c].set(xticks=[], yticks=[], frame_on=False)
    return figure, axes.reshape(rows, subjects, modalities)


def _label_columns(figure: Figure, axes: Array, panels: Panels) -> None:
    """Names above the first row of tiles [P, M], and the patient's sides on one."""
    for subject, tiles in zip(panels.subjects, axes, strict=True):
        for modality, tile in zip(panels.modalities, tiles, strict=True):
            tile.set_title(modality, size=10, pad=4)
        first, last = tiles[0].get_position(), tiles[-1].get_position()
        name = dict(ha="center", va="top", size=11, weight="bold")
        top = 1 - 8 / figure.bbox.height
        figure.text((first.x0 + last.x1) / 2, top, subject, **name)
    _write_on(axes[0, 0], 0.10, 0.88, "R")
    _write_on(axes[0, 0], 0.98, 0.88, "L")


def _write_on(axes: Axes, right: float, low: float, text: str) -> None:
    axes.text(right, low, text, ha="right", size=7, color="w", transform=axes.transAxes)


def _add_colour_bar(figure: Figure, axes: Array) -> None:
    """The scale of the errors, beside the rows below the truth."""
    first, last = axes[1, -1, -1].get_position(), axes[-1, -1, -1].get_position()
    width = figure.bbox.width
    box = (last.x1 + LINE / width, last.y0, LINE / width, first.y1 - last.y0)
    errors, scale = axes[2, 0, 0].images[0], figure.add_axes(box)
    bar = figure.colorbar(errors, cax=scale, extend="max", extendfrac=0.02)
    bar.set_label("|error|, grey levels of 0 to 255", size=9)
    scale.tick_params(labelsize=8)
