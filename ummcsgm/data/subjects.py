"""Subjects read and prepared for the network: brain, crop window, scales, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ummcsgm.data.crop import CropWindow, SliceView, brain_mask, crop, crop_around, crop_mask
from ummcsgm.data.intensity import fit_scale, normalise
from ummcsgm.data.labels import CORE, ENHANCING, OEDEMA, UNKNOWN
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import (
    Geometry,
    check_same_grid,
    read_segmentation,
    read_volume,
    read_volumes,
    spacing_in_plane,
)
from ummcsgm.types import InputError


@dataclass(frozen=True)
class PreparedSubject:
    """A subject's volumes, and how they are cropped and scaled for the network.

    `scales` has the intensity that becomes 1, for each modality that was read.
    """

    volumes: dict[str, np.ndarray]  # [Z, Y, X] float32
    geometry: Geometry
    brain: np.ndarray  # [Z, Y, X] bool
    window: CropWindow
    scales: dict[str, float]
    neighbours: int  # slices on either side of each, see `network_stacks`


def prepare_subject(
    subject: Subject, modalities: Sequence[str], view: SliceView
) -> PreparedSubject:
    """Reads and prepares the scans of `subject` in `modalities`, as many as it has.

    Raises:
        InputError: it has none of them, a file cannot be read or scaled, or the brain
            does not fit in the grid.
    """
    files = {name: subject.files[name] for name in modalities if name in subject.files}
    if not files:
        raise InputError(
            f"subject {subject.name} has none of config.data.modalities, {', '.join(modalities)}"
        )
    volumes, geometry, brain = read_with_brain(subject, files, view.masked)
    try:
        window = view_window(brain, geometry, view)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    scales = {}
    for name, path in files.items():
        try:
            scales[name] = fit_scale(volumes[name])
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
    return PreparedSubject(volumes, geometry, brain, window, scales, view.neighbours)


def read_with_brain(
    subject: Subject, files: Mapping[str, Path], masked: bool
) -> tuple[dict[str, np.ndarray], Geometry, np.ndarray]:
    """The volumes [Z, Y, X] of `files` by modality, their geometry, and the brain.

    If `masked`, the brain is the subject's mask, and volumes are 0 outside it. Else it is
    where any volume is not 0.

    Raises:
        InputError: a file cannot be read or lies on another grid, or there is no mask.
    """
    volumes, geometry = read_volumes(files, subject.volume_indices)
    if not masked:
        return volumes, geometry, brain_mask(volumes.values())
    if subject.mask is None:
        raise InputError(
            f"subject {subject.name} has no brain mask, which config.data.mask asks for"
        )
    mask, mask_geometry = read_volume(subject.mask)
    check_same_grid(geometry, mask_geometry)
    brain = mask > 0
    return {name: volume * brain for name, volume in volumes.items()}, geometry, brain


def view_window(brain: np.ndarray, geometry: Geometry, view: SliceView) -> CropWindow:
    """The window of `view` on a volume of `geometry`, around `brain` [Z, Y, X].

    Raises:
        InputError: there is no brain, or it does not fit in the grid.
    """
    if not view.spacing:
        return crop_around(brain, view.grid)
    dy, dx = spacing_in_plane(geometry)
    return crop_around(brain, view.grid, (view.spacing / dy, view.spacing / dx))


def network_slices(
    prepared: PreparedSubject, modalities: Sequence[str], z: np.ndarray
) -> np.ndarray:
    """The axial slices `z` on the network's grid, float32 [S, H, W, M].

    A modality that the subject does not have is 0, and so is the background.
    """
    window = prepared.window
    images = np.zeros((len(z), *window.grid, len(modalities)), np.float32)
    for channel, name in enumerate(modalities):
        if name in prepared.scales:
            volume = normalise(prepared.volumes[name][z], prepared.scales[name])
            images[..., channel] = crop(window, volume)
    if window.step != (1.0, 1.0):  # interpolation is not 0 beside the brain
        images *= network_brain(prepared, z)[..., None]
    return images


def network_stacks(
    prepared: PreparedSubject, modalities: Sequence[str], z: np.ndarray
) -> np.ndarray:
    """The slices `z` with their neighbours on the network's grid (see `stack_neighbours`).

    Slices beyond the ends of the volume are 0.
    """
    near = z[:, None] + np.arange(-prepared.neighbours, prepared.neighbours + 1)
    image_z = np.unique(near.clip(0, len(prepared.brain) - 1))
    images = network_slices(prepared, modalities, image_z)
    return stack_neighbours(images, image_z, z, prepared.neighbours)


def stack_neighbours(
    images: np.ndarray, image_z: np.ndarray, z: np.ndarray, neighbours: int
) -> np.ndarray:
    """[S, H, W, M (2 n + 1)]: the slices `z`, each with n neighbours on either side.

    The first M channels are the slice itself; then those of z - n, ..., z - 1, z + 1,
    ..., z + n. `images` [N, H, W, M] are the slices `image_z` [N], ascending; others are 0.
    """
    offsets = sorted(range(-neighbours, neighbours + 1), key=lambda n: (n != 0, n))
    near = z[:, None] + np.array(offsets)
    index = np.searchsorted(image_z, near).clip(0, len(image_z) - 1)
    stacks = images[index]
    stacks[image_z[index] != near] = 0
    num_slices, copies, height, width, modalities = stacks.shape
    shape = (num_slices, height, width, copies * modalities)
    return np.moveaxis(stacks, 1, 3).reshape(shape)


def network_brain(prepared: PreparedSubject, z: np.ndarray) -> np.ndarray:
    """The brain on the network's grid in the slices `z`, bool [S, H, W]."""
    return crop_mask(prepared.window, prepared.brain[z])


def read_labels(subject: Subject, prepared: PreparedSubject) -> np.ndarray | None:
    """The segmentation [Z, Y, X] int8 of `subject`, None where it has none.

    Raises:
        InputError: it lies on another grid than the scans, or holds other values than
            its layout has.
    """
    if subject.segmentation is None:
        return None
    volume, geometry = read_segmentation(subject.segmentation)
    check_same_grid(prepared.geometry, geometry)
    labels = np.zeros(volume.shape, np.int8)
    values = zip((CORE, OEDEMA, ENHANCING), subject.tumour_values, strict=True)
    for value, value_in_file in values:
        labels[volume == value_in_file] = value
    cavity = [] if subject.cavity_value is None else [subject.cavity_value]
    unknown = np.setdiff1d(volume, [0, *subject.tumour_values, *cavity])
    if unknown.size:
        raise InputError(
            f"{subject.segmentation} holds the value {unknown[0]:g}: a segmentation of "
            f"this layout has 0 and {', '.join(map(str, subject.tumour_values))}"
        )
    return labels


def network_labels(
    prepared: PreparedSubject, labels: np.ndarray | None, z: np.ndarray
) -> np.ndarray:
    """The slices `z` of `read_labels` on the network's grid, int8 [S, H, W]."""
    window = prepared.window
    if labels is None:
        return np.full((len(z), *window.grid), UNKNOWN, np.int8)
    cropped = np.zeros((len(z), *window.grid), np.int8)
    for value in (OEDEMA, CORE, ENHANCING):
        cropped[crop_mask(window, labels[z] == value)] = value
    return cropped
