"""Whether the modalities of a subject belong together and are what they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from ummcsgm.data.layouts.layout import contrast_of
from ummcsgm.data.nifti import spacing
from ummcsgm.qc.alignment import Move, Tissue, flattened, misplacement
from ummcsgm.qc.contrast import true_names
from ummcsgm.qc.findings import Problem
from ummcsgm.qc.scans import Scan

ONE = 0.999  # correlation of two volumes that are one image
ANCHORS = ("t1", "t1c", "t2")  # what others are best aligned to, the best first


def check_modalities(scans: Mapping[str, Scan]) -> Iterator[tuple[str, Problem]]:
    """The problems between `scans`, which lie on one grid, by modality.

    An image that is there twice, or lies off the others, is judged no further.
    """
    found = {
        name: flattened(scan.volume, scan.brain, spacing(scan.geometry))
        for name, scan in scans.items()
    }
    tissues = {name: tissue for name, tissue in found.items() if tissue is not None}
    twice = _duplicates(scans, tissues)
    for name, other in twice.items():
        yield name, _duplicate(other)
    single = {name: tissue for name, tissue in tissues.items() if name not in twice}
    moved = _misplaced(single, _voxel(scans))
    for name, (other, move) in moved.items():
        yield name, (_mirrored(other) if move.mirrored else _misregistered(other, move))
    doubtful = {*twice.values(), *moved}
    sound = {name: tissue for name, tissue in single.items() if name not in doubtful}
    for name, seen in true_names(sound).items():
        yield name, _swapped(name, seen)


def _voxel(scans: Mapping[str, Scan]) -> float:
    """The edge in mm of a cube as large as a voxel of `scans`; 0 where none are."""
    edges = [spacing(scan.geometry) for scan in scans.values()]
    return float(np.prod(edges[0]) ** (1 / 3)) if edges else 0.0


def _duplicates(scans: Mapping[str, Scan], tissues: Mapping[str, Tissue]) -> dict[str, str]:
    """The modalities that are the image of an earlier one, and which that is."""
    twice: dict[str, str] = {}
    for one, other in combinations(scans, 2):
        if one not in twice and other not in twice:
            same = np.array_equal(scans[one].volume, scans[other].volume)
            if same or _correlation(tissues.get(one), tissues.get(other)) > ONE:
                twice[other] = one
    return twice


def _correlation(one: Tissue | None, other: Tissue | None) -> float:
    """Pearson's, where both have brain; 0 where either is None or there is none."""
    if one is None or other is None or not (one.brain & other.brain).any():
        return 0.0
    both = one.brain & other.brain
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(one.values[both], other.values[both])[0, 1])


def _misplaced(tissues: Mapping[str, Tissue], voxel: float) -> dict[str, tuple[str, Move]]:
    """The modalities that lie off another, which that is, and how."""
    if len(tissues) < 2:
        return {}
    first, *others = sorted(tissues, key=_anchor)
    found = {o: misplacement(tissues[first], tissues[o], voxel) for o in others}
    moved = {o: (first, move) for o, move in found.items() if move is not None}
    if len(others) < 2 or len(moved) < len(others):
        return moved
    # All lie off the first: it is the one that moved, if two of them agree.
    second, third = others[:2]
    if misplacement(tissues[second], tissues[third], voxel) is not None:
        return moved
    move = misplacement(tissues[second], tissues[first], voxel)
    return moved if move is None else {first: (second, move)}


def _anchor(name: str) -> int:
    """The place of a modality among those that others are best aligned to."""
    contrast = contrast_of(name)
    return ANCHORS.index(contrast) if contrast in ANCHORS else len(ANCHORS)


def _misregistered(other: str, move: Move) -> Problem:
    right, front, up = move.shift
    text = (
        f"lies {move.distance:.1f} mm off {other} on average ({right:+.1f} mm to the "
        f"right, {front:+.1f} to the front, {up:+.1f} up, turned by "
        f"{move.angle:.0f} degrees): register the modalities to one another"
    )
    return Problem("stop", "misregistered", text)


def _mirrored(other: str) -> Problem:
    text = (
        f"has left and right exchanged against {other}: correct the orientation in the "
        "header of the wrong one, or convert it again; no registration mends it"
    )
    return Problem("stop", "mirrored", text)


def _duplicate(other: str) -> Problem:
    text = f"is the same image as {other}: give the right file, or leave it out"
    return Problem("stop", "duplicate", text)


def _swapped(name: str, seen: str) -> Problem:
    text = f"is called {name} but looks like {seen}: exchange the files, or correct their names"
    return Problem("stop", "swapped", text)
