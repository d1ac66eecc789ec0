"""Synthetic brain-tumour subjects, written as files in the layout of BraTS 2019.

A phantom is a function of (seed, subject). Each part draws from a separate random stream:
it depends neither on other parts nor on the number of processes nor on other subjects.
Anatomy is drawn in mm and then sampled: two shapes show the same brain.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ummcsgm.data.nifti import write_new
from ummcsgm.data.phantom.anatomy import Outline, draw_brain, draw_build, outline, vessels
from ummcsgm.data.phantom.physics import (
    MODALITIES,
    Maps,
    draw_bias,
    draw_maps,
    draw_protocol,
    measure,
    scan,
    signal,
    take_up,
)
from ummcsgm.data.phantom.shapes import Points, share, smooth_field
from ummcsgm.data.phantom.truth import draw_truth, truth_path, write_truth
from ummcsgm.data.phantom.tumour import (
    draw_seat,
    draw_tumour,
    draw_uptake,
    grade,
    pushed,
    segmentation,
)
from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic
from ummcsgm.utils.pool import map_in_processes

FIELD_OF_VIEW = (240.0, 240.0, 155.0)  # mm, as in BraTS
SMALLEST, LARGEST = (32, 32, 8), (240, 240, 155)
FORMAT = 1  # raised when the same seed comes to mean other images
SAMPLE = 2.0  # mm; voxels larger than this are the mean of several samples
STREAMS = ("shape", "folds", "tumour", "tissue", "protocol", "gadolinium", "coil")
STREAMS += MODALITIES
SUFFIXES = {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2"}
TO_ATLAS = np.array([[1.06, 0.97, 0.93], [0.0, -17.0, 9.0]])  # scale, origin in mm


@dataclass(frozen=True)
class Phantom:
    """One subject; arrays [X, Y, Z] run to the left, to the back and up, as in BraTS.

    `images` are int16 by modality, 0 outside the brain; `segmentation` is uint8 with
    1 for core and necrosis, 2 for oedema, 4 for enhancing tumour.
    """

    name: str
    grade: str
    images: dict[str, Array]
    segmentation: Array


@dataclass(frozen=True)
class Grid:
    """Samples of the voxels that may hold brain: `parts` a voxel along each axis."""

    shape: tuple[int, int, int]
    parts: tuple[int, int, int]
    box: tuple[slice, slice, slice]  # of voxels
    inside: Array  # [x, y, z] bool over the samples of the box


def make_subject(seed: int, index: int, shape: tuple[int, int, int]) -> Phantom:
    """Subject `index`, counted from 0, of `seed`, on a grid of `shape` voxels.

    Raises InputError if a brain cannot be drawn on `shape`.
    """
    return make_phantom(streams(seed, index), subject_name(index), check_shape(shape))


def streams(seed: int, index: int) -> dict[str, np.random.Generator]:
    """The generators of subject `index`, one for each of STREAMS."""
    return {
        name: np.random.default_rng([seed, index, address]) for address, name in enumerate(STREAMS)
    }


def subject_name(index: int) -> str:
    """The BraTS-like name of subject `index`; names count from 1."""
    return f"BraTS19_PHANTOM_{index + 1:04d}_1"


def check_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns `shape` as integers. Raises InputError unless a brain can be drawn on it."""
    whole = len(shape) == 3 and all(isinstance(n, int | np.integer) for n in shape)
    if whole and all(
        low <= n <= high for low, n, high in zip(SMALLEST, shape, LARGEST, strict=True)
    ):
        return tuple(int(n) for n in shape)
    raise InputError(
        f"config.phantom.shape is {tuple(shape)}; it must be three whole numbers of "
        f"voxels, at least {SMALLEST} and at most {LARGEST}."
    )


def make_phantom(
    keys: dict[str, np.random.Generator], name: str, shape: tuple[int, int, int]
) -> Phantom:
    """The subject that the streams `keys` describe, on a grid of `shape` voxels."""
    grid, at, lines = draw_positions(keys["shape"], *make_grid(shape))
    seat = draw_seat(keys["tumour"])
    before = pushed(seat, at)
    brain = draw_brain(keys["folds"], draw_build(keys["shape"]), before, lines)
    tumour = draw_tumour(keys["tumour"], seat, at, brain)
    blood = share(vessels(before, brain.hull, brain.tissue), at.step)
    leaky = blood + 0.3 * dict(brain.layers)["plexus"]
    uptake = draw_uptake(keys["gadolinium"], tumour, at, leaky)
    layers = [*brain.layers, *tumour.layers, ("vessel", blood)]
    maps = draw_maps(keys["tissue"], layers, at)
    head = (brain.head > 0).astype(np.float32)
    images = draw_images(keys, maps, uptake.total, lambda s: voxels(grid, s * head))
    mask = voxels(grid, head) > 0.5
    parts = (tumour.oedema, tumour.solid, uptake.tumour)
    labels = segmentation(*(voxels(grid, part) for part in parts))
    images = {modality: image * mask for modality, image in images.items()}
    return Phantom(name, grade(tumour, uptake), images, labels * mask)


def make_grid(shape: tuple[int, int, int]) -> tuple[Grid, list[Array]]:
    """The samples of a grid of `shape`, and their positions in mm along each axis."""
    reach = np.array([84.0, 106.0, 80.0])  # half axes, mm, of all heads
    box, axes, parts = [], [], []
    for n, view, half in zip(shape, FIELD_OF_VIEW, reach, strict=True):
        size = view / n
        part = int(np.ceil(size / SAMPLE - 1e-9))
        voxel = np.flatnonzero(np.abs((np.arange(n) + 0.5) * size - view / 2) < half)
        box.append(slice(int(voxel[0]), int(voxel[-1]) + 1))
        sample = np.arange(voxel[0] * part, (voxel[-1] + 1) * part)
        axes.append(((sample + 0.5) * (size / part) - view / 2).astype(np.float32))
        parts.append(part)
    x, y, z = ((a / h) ** 2 for a, h in zip(axes, reach + [0, 0, 8], strict=True))
    inside = x[:, None, None] + y[:, None] + z < 1
    return Grid(shape, tuple(parts), tuple(box), inside), axes


def draw_positions(
    key: np.random.Generator, grid: Grid, axes: list[Array]
) -> tuple[Grid, Points, Outline]:
    """The grid without samples outside the head, their points in the atlas, and the outline.

    The head is scaled, bent and asymmetric at random.
    """
    scale = TO_ATLAS[0] * np.exp(key.normal(0, 0.025, 3))
    view = [a / v for a, v in zip(axes, FIELD_OF_VIEW, strict=True)]
    signed = (-axes[0][:, None, None], -axes[1][:, None], axes[2])
    atlas = []
    for along, size, origin in zip(signed, scale, TO_ATLAS[1], strict=True):
        bend = 3.0 * smooth_field(key, view, 4) + along / np.float32(size)
        atlas.append(bend[grid.inside] + np.float32(origin))
    step = np.mean([a[1] - a[0] for a in axes])
    at = Points(*atlas, float(step))
    lines = outline(at)
    near = lines.head > -4
    inside = np.zeros_like(grid.inside)
    inside[grid.inside] = near
    lines = Outline(*(depth[near] for depth in vars(lines).values()))
    return replace(grid, inside=inside), at.where(near), lines


def voxels(grid: Grid, values: Array) -> Array:
    """The means [X, Y, Z] over voxels of `values` [N] at the samples, 0 elsewhere."""
    total = np.zeros(grid.inside.shape, np.float32)
    total[grid.inside] = values
    for axis, part in enumerate(grid.parts):
        lines = np.moveaxis(total, axis, 0)
        total = np.moveaxis(sum(lines[k::part] for k in range(part)), 0, axis)
    whole = np.zeros(grid.shape, np.float32)
    whole[grid.box] = total / np.prod(grid.parts)
    return whole


def draw_images(
    keys: dict[str, np.random.Generator],
    maps: Maps,
    gadolinium: Array,
    average: Callable[[Array], Array],
) -> dict[str, Array]:
    """The four images, int16 [X, Y, Z], with noise everywhere.

    `gadolinium` [N] in mM is there for T1c alone; `average` takes samples to voxels.
    """
    protocol = draw_protocol(keys["protocol"])
    enhanced = replace(maps, dry=take_up(maps.dry, gadolinium))
    clean = {
        modality: average(scan(enhanced if modality == "t1c" else maps, sequence))
        for modality, sequence in protocol.items()
    }
    coil = draw_bias(keys["coil"], clean["t1"].shape, 0.12, 0.25)
    volume = float(np.prod(FIELD_OF_VIEW) / coil.size)  # mm^3 of a voxel
    return {
        modality: measure(
            keys[modality],
            clean[modality],
            float(signal(maps.white, protocol[modality])),
            coil,
            volume,
        )
        for modality in MODALITIES
    }


def write_phantom(
    folder: Path, *, subjects: int, shape: tuple, seed: int, processes: int
) -> list[Path]:
    """Writes `subjects` subjects as HGG|LGG/NAME/NAME_*.nii.gz; returns their folders.

    Beside the scans lies what decides enhancement, see `truth`. Existing subjects are not made
    again; the truth is added to those of an earlier version, which have none. A subject appears
    completely or not at all, and has the same bytes for the same seed, whatever the number of
    processes.

    Raises InputError if `shape`, `subjects`, `seed` or `processes` is out of range, or if
    `folder` holds the phantom of another seed or shape.
    """
    folder, shape = Path(folder), check_shape(shape)
    minimum = {"subjects": (subjects, 1), "processes": (processes, 1), "seed": (seed, 0)}
    for name, (number, low) in minimum.items():
        if number < low:
            raise InputError(f"{name} is {number}; it must be at least {low}.")
    record, options = (
        folder / "phantom.json",
        {"seed": seed, "shape": list(shape), "format": FORMAT},
    )
    existing = read_json(record) if record.exists() else None
    if existing is None:
        write_atomic(record, json.dumps(options))
    elif existing != options:
        raise InputError(
            f"{folder} holds the phantom of {existing}, not of {options}; name another "
            "folder, or remove this one."
        )
    write = partial(write_subject, folder, shape, seed)
    return list(map_in_processes(write, range(subjects), processes))


def write_subject(folder: Path, shape: tuple, seed: int, index: int) -> Path:
    """Writes subject `index` unless it exists; returns its folder."""
    name = subject_name(index)
    for finished in (folder / "HGG" / name, folder / "LGG" / name):
        if finished.is_dir():
            if not truth_path(finished).exists():
                write_truth(truth_path(finished), draw_truth(streams(seed, index)))
            return finished
    phantom = make_subject(seed, index, shape)
    size = np.array(FIELD_OF_VIEW) / shape
    affine = np.diag([-size[0], -size[1], size[2], 1.0])
    affine[1, 3] = FIELD_OF_VIEW[1] - size[1]
    volumes = {SUFFIXES[m]: image for m, image in phantom.images.items()}
    target = folder / phantom.grade / name
    temporary = folder / f".{name}.{os.getpid()}"
    try:
        for suffix, volume in (volumes | {"seg": phantom.segmentation}).items():
            write_new(temporary / f"{name}_{suffix}.nii.gz", volume, affine)
        truth = temporary / truth_path(target).name
        write_truth(truth, draw_truth(streams(seed, index)))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
