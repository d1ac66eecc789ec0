"""The checks between the modalities of a subject: duplicates, alignment, names."""

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

SAME_IMAGE = 0.999  # correlation of two volumes that are one image
ANCHORS = ("t1", "t1c", "t2")  # what others are best aligned to, the best first


def check_modalities(scans: Mapping[str, Scan]) -> Iterator[tuple[str, Problem]]:
    """The problems between `scans`, which lie on one grid, by modality.

    An image that is a duplicate, or lies off the others, is checked no further.
    """
    found = {
        name: flattened(scan.volume, scan.brain, spacing(scan.geometry))
        for name, scan in scans.items()
    }
    tissues = {name: tissue for name, tissue in found.items() if tissue is not None}
    twice = _duplicates(scans, tissues)
    for name, other in twice.items():
        text = f"is the same image as {other}: give the right file, or leave it out"
        yield name, Problem("stop", "duplicate", text)
    single = {name: tissue for name, tissue in tissues.items() if name not in twice}
    edges = [spacing(scan.geometry) for scan in scans.values()]
    voxel = float(np.prod(edges[0]) ** (1 / 3)) if edges else 0.0
    moved = _misplaced(single, voxel)
    for name, (other, move) in moved.items():
        yield name, _misplacement_problem(other, move)
    doubtful = {*twice.values(), *moved}
    sound = {name: tissue for name, tissue in single.items() if name not in doubtful}
    for name, seen in true_names(sound).items():
        text = f"is called {name} but looks like {seen}: exchange the files, or correct their names"
        yield name, Problem("stop", "swapped", text)


def _duplicates(scans: Mapping[str, Scan], tissues: Mapping[str, Tissue]) -> dict[str, str]:
    """{modality: an earlier modality of the same image}."""
    twice: dict[str, str] = {}
    for first, second in combinations(scans, 2):
        if first not in twice and second not in twice:
            same = np.array_equal(scans[first].volume, scans[second].volume)
            if same or _correlation(tissues.get(first), tissues.get(second)) > SAME_IMAGE:
                twice[second] = first
    return twice


def _correlation(first: Tissue | None, second: Tissue | None) -> float:
    """Pearson's correlation within both brains; 0 if they do not overlap or are None."""
    if first is None or second is None or not (first.brain & second.brain).any():
        return 0.0
    both = first.brain & second.brain
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(first.values[both], second.values[both])[0, 1])


def _misplaced(tissues: Mapping[str, Tissue], voxel: float) -> dict[str, tuple[str, Move]]:
    """{modality that lies off another: (the other modality, how it is moved)}."""
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
    """The rank of a modality as a reference that others are aligned to, the best first."""
    contrast = contrast_of(name)
    return ANCHORS.index(contrast) if contrast in ANCHORS else len(ANCHORS)


def _misplacement_problem(other: str, move: Move) -> Problem:
    if move.mirrored:
        text = (
            f"has left and right exchanged against {other}: correct the orientation in the "
            "header of the wrong one, or convert it again; no registration mends it"
        )
        return Problem("stop", "mirrored", text)
    right, front, up = move.shift
    text = (
        f"lies {move.distance:.1f} mm off {other} on average ({right:+.1f} mm to the "
        f"right, {front:+.1f} to the front, {up:+.1f} up, turned by "
        f"{move.angle:.0f} degrees): register the modalities to one another"
    )
    return Problem("stop", "misregistered", text)
