"""A subject as the network sees it: its brain, its window, its scales, its slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ummcsgm.data.intensity import fit_scale, normalise
from ummcsgm.data.layouts import Subject
from ummcsgm.data.nifti import Case, read_case
from ummcsgm.data.window import Window, brain_mask, cut, window_around
from ummcsgm.types import InputError


@dataclass(frozen=True)
class Prepared:
    """A subject's volumes, and how they are cut and scaled for the network.

    `scales` has the intensity that becomes 1, for each modality that was read.
    """

    case: Case
    brain: np.ndarray  # [Z, Y, X] bool
    window: Window
    scales: dict[str, float]


def prepare_subject(
    subject: Subject, modalities: Sequence[str], grid: tuple[int, int]
) -> Prepared:
    """Those of `modalities` that `subject` has, read from its files.

    Raises:
        InputError: it has none of them, a file cannot be read or scaled, or the brain
            does not fit in the grid.
    """
    files = {name: subject.files[name] for name in modalities if name in subject.files}
    if not files:
        raise InputError(
            f"subject {subject.name} has none of config.data.modalities, "
            f"{', '.join(modalities)}"
        )
    case = read_case(files)
    brain = brain_mask(case.volumes.values())
    try:
        window = window_around(brain, grid)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    scales = {name: _scale(files[name], case.volumes[name]) for name in files}
    return Prepared(case, brain, window, scales)


def network_slices(
    prepared: Prepared, modalities: Sequence[str], z: np.ndarray
) -> np.ndarray:
    """The axial slices `z` on the network's grid, float32 [S, H, W, M].

    A modality that the subject does not have is 0.
    """
    images = np.zeros((len(z), *prepared.window.grid, len(modalities)), np.float32)
    for channel, name in enumerate(modalities):
        if name in prepared.scales:
            volume = normalise(prepared.case.volumes[name][z], prepared.scales[name])
            images[..., channel] = cut(prepared.window, volume)
    return images


def _scale(path: Path, volume: np.ndarray) -> float:
    try:
        return fit_scale(volume)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
