"""Tumour segmentations, as the slices of the store carry them.

Values are those of BraTS 2018 to 2021, whatever the files have: 1 necrotic and
non-enhancing core, 2 oedema, 4 enhancing tumour, 0 elsewhere, also where a tumour was
resected; UNKNOWN where the subject has no segmentation.
"""

from __future__ import annotations

import numpy as np

from ummcsgm.data.crop import crop_mask
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import check_same_grid, read_segmentation
from ummcsgm.data.subjects import PreparedSubject
from ummcsgm.types import Array, InputError

CORE, OEDEMA, ENHANCING, UNKNOWN = 1, 2, 4, -1
REGIONS = {  # of BraTS, by the labels that each is made of
    "WT": (CORE, OEDEMA, ENHANCING),  # whole tumour
    "TC": (CORE, ENHANCING),  # tumour core
    "ET": (ENHANCING,),  # enhancing tumour
}


def read_labels(subject: Subject, prepared: PreparedSubject) -> Array | None:
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


def network_labels(prepared: PreparedSubject, labels: Array | None, z: Array) -> Array:
    """The slices `z` of `read_labels` on the network's grid, int8 [S, H, W]."""
    window = prepared.window
    if labels is None:
        return np.full((len(z), *window.grid), UNKNOWN, np.int8)
    cropped = np.zeros((len(z), *window.grid), np.int8)
    for value in (OEDEMA, CORE, ENHANCING):
        cropped[crop_mask(window, labels[z] == value)] = value
    return cropped


def region(labels: Array, name: str) -> Array:
    """The mask of the region called `name`, one of REGIONS."""
    return np.isin(labels, REGIONS[name])
