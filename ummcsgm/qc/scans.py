"""A subject's files read for the doctor: what fails is a problem, the rest goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ummcsgm.data import nifti
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import Geometry, NiftiError, read_volume, read_volumes, same_grid, spacing
from ummcsgm.qc.findings import NamedProblems, Problem
from ummcsgm.types import InputError

MASK, SEGMENTATION = "mask", "segmentation"
NO_LESION = ("empty", "constant")  # codes that are no problem of a segmentation
MIN_BACKGROUND = 0.5  # share of the frame's faces that has one value in a background
# The code of each error of reading, and what to do. The first class that fits counts.
READING_PROBLEMS = {
    nifti.NotFiniteError: ("not_finite", "find the step of the preprocessing that made them"),
    nifti.EmptyVolumeError: ("empty", "replace or remove it"),
    nifti.ConstantVolumeError: ("constant", "replace or remove it"),
    nifti.VolumeCountError: ("four_d", "give each modality the one volume that is meant"),
    nifti.UnplacedError: ("unplaced", "convert it again with its sform or qform"),
    nifti.NotAVolumeError: ("not_3d", "convert it to one 3-D volume"),
    nifti.ValueTypeError: ("not_real", "convert it to integers or floats"),
    NiftiError: ("unreadable", "copy or convert it again"),
}


@dataclass(frozen=True)
class Scan:
    """One modality [Z, Y, X], and the part of it that is not background."""

    volume: np.ndarray
    brain: np.ndarray
    inside: np.ndarray  # the brain for training: the mask's, or what is not 0
    background: float
    geometry: Geometry


def read_scans(
    subject: Subject, modalities: tuple[str, ...]
) -> tuple[dict[str, Scan], NamedProblems]:
    """The readable scans of the subject by modality, and the problems of the others.

    A 4-D file is read once for all the modalities in it.
    """
    names_of: dict[Path, list[str]] = defaultdict(list)
    for name in modalities:
        if name in subject.files:
            names_of[subject.files[name]].append(name)
    read, problems = {}, []
    for path, names in names_of.items():
        try:
            volumes, geometry = read_volumes(dict.fromkeys(names, path), subject.volume_indices)
            read |= {name: (volumes[name], geometry) for name in names}
        except InputError:
            for name in names:
                result = _read(path, subject.volume_indices.get(name))
                if isinstance(result, Problem):
                    problems.append((name, result))
                else:
                    read[name] = result
    scans = {name: _scan(*read[name]) for name in modalities if name in read}
    return {name: scan for name, scan in scans.items() if scan.brain.any()}, problems


def on_one_grid(scans: dict[str, Scan]) -> tuple[dict[str, Scan], NamedProblems]:
    """The scans on the grid that most of them have, and the problems of the others."""
    if not scans:
        return {}, []
    alike = {
        name: [other for other in scans if same_grid(scans[other].geometry, scan.geometry)]
        for name, scan in scans.items()
    }
    reference = max(alike, key=lambda name: len(alike[name]))
    problems = [
        (name, _off_grid(scans[name].geometry, scans[reference].geometry))
        for name in scans
        if name not in alike[reference]
    ]
    return {name: scans[name] for name in alike[reference]}, problems


def within_mask(subject: Subject, scans: dict[str, Scan]) -> tuple[dict[str, Scan], NamedProblems]:
    """`scans`, on one grid, within the subject's mask, if it has one that fits them."""
    if subject.mask is None or not scans:
        return scans, []
    mask = _read_on_grid(subject.mask, next(iter(scans.values())).geometry)
    if isinstance(mask, Problem):
        return scans, [(MASK, mask)]
    inside = mask > 0
    scans = {
        name: replace(_scan(scan.volume * inside, scan.geometry), inside=inside)
        for name, scan in scans.items()
    }
    outside = [name for name, scan in scans.items() if not scan.brain.any()]
    if not outside:
        return scans, []
    text = f"holds nothing of {', '.join(outside)}: give the mask of this subject's brain"
    scans = {name: scan for name, scan in scans.items() if name not in outside}
    return scans, [(MASK, Problem("stop", "empty", text))]


def check_segmentation(subject: Subject, scans: dict[str, Scan]) -> Iterator[Problem]:
    """The problem that keeps the segmentation from showing the lesions of `scans`."""
    if subject.segmentation is None or not scans:
        return
    labels = _read_on_grid(subject.segmentation, next(iter(scans.values())).geometry)
    if isinstance(labels, Problem) and labels.code not in NO_LESION:
        yield replace(labels, severity="warn")


def _read(path: Path, index: int | None) -> tuple[np.ndarray, Geometry] | Problem:
    """The volume and its geometry, or why they cannot be read."""
    try:
        return read_volume(path, index)
    except NiftiError as error:
        found = (entry for kind, entry in READING_PROBLEMS.items() if isinstance(error, kind))
        code, remedy = next(found)
        return Problem("stop", code, f"{error.reason}; {remedy}")


def _read_on_grid(path: Path, geometry: Geometry) -> np.ndarray | Problem:
    """The volume in `path`, if it lies on the grid of `geometry`."""
    result = _read(path, None)
    if isinstance(result, Problem):
        return result
    volume, volume_geometry = result
    if not same_grid(volume_geometry, geometry):
        return _off_grid(volume_geometry, geometry)
    return volume


def _scan(volume: np.ndarray, geometry: Geometry) -> Scan:
    brain, background = _foreground(volume)
    inside = brain if background == 0 else volume != 0
    return Scan(volume, brain, inside, background, geometry)


def _foreground(volume: np.ndarray) -> tuple[np.ndarray, float]:
    """Where `volume` [Z, Y, X] is not background, and the value of the background.

    The background is the value of most of the frame's faces, else 0.
    """
    faces = [np.take(volume, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    most = counts.argmax()
    common = counts[most] > MIN_BACKGROUND * counts.sum()
    value = float(values[most]) if common else 0.0
    return volume != np.float32(value), value


def _off_grid(geometry: Geometry, reference: Geometry) -> Problem:
    """How the grid of `geometry` differs from that of `reference`."""
    difference = _grid_difference(geometry, reference)
    return Problem("stop", "grid", f"{difference}; resample the files of a subject to one grid")


def _grid_difference(geometry: Geometry, reference: Geometry) -> str:
    name = reference.path.name
    if geometry.shape[:3] != reference.shape[:3]:
        return f"is {geometry.shape[:3]} voxels, but {name} is {reference.shape[:3]}"
    voxel = np.linalg.norm(reference.affine[:3, :3], axis=0).min()
    edges, wanted = (np.array(spacing(g)[::-1]) for g in (geometry, reference))
    if np.abs(edges - wanted).max() > nifti.TOLERANCE * voxel:
        return f"has voxels of {_by(edges)} mm, but {name} of {_by(wanted)} mm"
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(geometry.shape[:3]) - 1)
    corners = np.c_[corners, np.ones(8)].T
    moved = ((geometry.affine - reference.affine) @ corners)[:3]
    distance = np.linalg.norm(moved, axis=0).max()
    return f"has an affine that puts it up to {distance:.3g} mm off {name}"


def _by(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges)
