"""A subject's files read for examination: whatever fails is told, the rest goes on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import TOLERANCE, Geometry, read_volume, read_volumes, spacing
from ummcsgm.qc.symptoms import Symptom, foreground, of_reading
from ummcsgm.types import InputError

MASK, SEGMENTATION = "mask", "segmentation"
HARMLESS = ("empty", "constant")  # of a segmentation: there is no lesion
Told = list[tuple[str, Symptom]]  # of which modality, and what


@dataclass(frozen=True)
class Scan:
    """One modality [Z, Y, X], and where in it the background is not."""

    volume: np.ndarray
    brain: np.ndarray
    inside: np.ndarray  # the brain as a run takes it: the mask's, or what is not 0
    background: float
    geometry: Geometry


def read_scans(subject: Subject, modalities: Sequence[str]) -> tuple[dict[str, Scan], Told]:
    """The readable ones of the subject's modalities, and what the others suffer from.

    A 4-D file is read once for all the modalities in it.
    """
    together: dict[Path, list[str]] = defaultdict(list)
    for name in modalities:
        if name in subject.files:
            together[subject.files[name]].append(name)
    read, told = {}, []
    for path, names in together.items():
        try:
            volumes, geometry = read_volumes(dict.fromkeys(names, path), subject.volume_indices)
            read |= {name: (volumes[name], geometry) for name in names}
        except InputError:
            for name in names:
                found, symptom = _read(path, subject.volume_indices.get(name))
                read |= {} if found is None else {name: found}
                told += [] if symptom is None else [(name, symptom)]
    scans = {n: _scan(*read[n]) for n in modalities if n in read}
    return {name: scan for name, scan in scans.items() if scan.brain.any()}, told


def on_one_grid(scans: dict[str, Scan]) -> tuple[dict[str, Scan], Told]:
    """The scans on the grid that most of them have, and how the others differ."""
    if not scans:
        return {}, []
    alike = {
        name: [o for o in scans if not _difference(scan.geometry, scans[o].geometry)]
        for name, scan in scans.items()
    }
    reference = max(alike, key=lambda name: len(alike[name]))
    told = [
        (name, _off_grid(scans[name].geometry, scans[reference].geometry))
        for name in scans
        if name not in alike[reference]
    ]
    return {name: scans[name] for name in alike[reference]}, told


def masked(subject: Subject, scans: dict[str, Scan]) -> tuple[dict[str, Scan], Told]:
    """`scans`, on one grid, within the subject's mask, if it has one that fits them."""
    if subject.mask is None or not scans:
        return scans, []
    geometry = next(iter(scans.values())).geometry
    found, symptom = _read(subject.mask, None)
    if found is not None and _difference(geometry, found[1]):
        symptom = _off_grid(found[1], geometry)
    if symptom is not None:
        return scans, [(MASK, symptom)]
    inside = found[0] > 0
    scans = {
        name: replace(_scan(scan.volume * inside, scan.geometry), inside=inside)
        for name, scan in scans.items()
    }
    bare = [name for name, scan in scans.items() if not scan.brain.any()]
    what = f"holds nothing of {', '.join(bare)}: give the mask of this subject's brain"
    told = [(MASK, Symptom("stop", "empty", what))] if bare else []
    return {name: scans[name] for name in scans if name not in bare}, told


def of_segmentation(subject: Subject, scans: dict[str, Scan]) -> Iterator[Symptom]:
    """What keeps the segmentation from telling where the lesions of `scans` are."""
    if subject.segmentation is None or not scans:
        return
    found, symptom = _read(subject.segmentation, None)
    geometry = next(iter(scans.values())).geometry
    if found is not None and _difference(geometry, found[1]):
        symptom = _off_grid(found[1], geometry)
    if symptom is not None and symptom.code not in HARMLESS:
        yield replace(symptom, severity="warn")


def _read(
    path: Path, index: int | None
) -> tuple[tuple[np.ndarray, Geometry] | None, Symptom | None]:
    """What is in `path`, or else why it cannot be read."""
    try:
        return read_volume(path, index), None
    except InputError as error:
        code, what = of_reading(str(error).removeprefix(f"{path}: "))
        return None, Symptom("stop", code, what)


def _scan(volume: np.ndarray, geometry: Geometry) -> Scan:
    brain, background = foreground(volume)
    inside = brain if background == 0 else volume != 0
    return Scan(volume, brain, inside, background, geometry)


def _off_grid(own: Geometry, other: Geometry) -> Symptom:
    what = f"{_difference(own, other)}; resample the files of a subject to one grid"
    return Symptom("stop", "grid", what)


def _difference(own: Geometry, other: Geometry) -> str:
    """How the grid of `own` differs from that of `other`, "" where it does not."""
    name = other.path.name
    if own.shape[:3] != other.shape[:3]:
        return f"is {own.shape[:3]} voxels, but {name} is {other.shape[:3]}"
    voxel = np.linalg.norm(other.affine[:3, :3], axis=0).min()
    if np.abs(own.affine - other.affine).max() <= TOLERANCE * voxel:
        return ""
    edges, wanted = (np.array(spacing(g)[::-1]) for g in (own, other))
    if np.abs(edges - wanted).max() > TOLERANCE * voxel:
        return f"has voxels of {_by(edges)} mm, but {name} of {_by(wanted)} mm"
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(own.shape[:3]) - 1)
    corners = np.c_[corners, np.ones(8)].T
    apart = np.linalg.norm(((own.affine - other.affine) @ corners)[:3], axis=0).max()
    return f"has an affine that puts it up to {apart:.3g} mm off {name}"


def _by(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges)
