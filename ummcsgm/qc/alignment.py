"""How far one modality lies off another, whatever the contrast of either.

Volumes are first made comparable: coarse, at 2.5 mm, and free of the scanner's slow shading.
There a subject's four volumes are searched for shifts and swaps in seconds.

The mutual information of the two at random points of the brain is climbed over shifts
and turns, from where they are. Only points inside both brains count: an outline that
does not show the fault, as under a shared mask, does not hide it.

The same measure, climbed from the mirror image too, finds exchanged left and right. Brains
are asymmetric enough: in six phantoms and two patients, each pair of contrasts has 1.5 to 9
times as much information as with one of them mirrored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

FINE, COARSE = 2.5, 6.5  # mm: what voxels are averaged to, and the largest of use
SHADING = 20.0  # mm: what varies more slowly is the coil and not the brain
MIN_VOXELS = 1500  # voxels with which a statistic means something
WHOLE = 0.99  # share of the brain in an averaged voxel that belongs to it
BINS = 24
POINTS = 15000
BLUR = 1.5  # mm
ARM = 60.0  # mm from the axis at which a turn moves a point as far as a shift does
STEPS = (8.0, 4.0, 2.0, 1.0)  # mm
ROUNDS = 6  # through all shifts and turns at most, with each step
OVERLAP = 0.6  # of what overlaps at first must overlap always
FAR = 4.0  # mm between the centres of two brains
NEAR = 2.0  # mm: no misregistration below, nor below one voxel
TURN = 10.0  # mm at the ARM, about each axis: where a climb begins again
RATIO, GAIN = 1.3, 0.04  # by which mutual information must grow, in nats the second


@dataclass(frozen=True)
class Tissue:
    """How far each voxel is above the mean around it, as a part of that mean."""

    values: np.ndarray  # [Z, Y, X] float32, 0 outside the brain
    brain: np.ndarray  # [Z, Y, X] bool
    spacing: np.ndarray  # dz, dy, dx in mm


def flattened(volume: np.ndarray, brain: np.ndarray, spacing: tuple) -> Tissue | None:
    """The tissue of `volume` [Z, Y, X] in `brain` [Z, Y, X], about 2.5 mm a voxel.

    None where the voxels are too large, or the brain in them too small, to compare.
    """
    parts = tuple(max(1, round(FINE / size)) for size in spacing)
    edges = np.array(spacing) * parts
    inside = _blocks(brain.astype(np.float32), parts) > WHOLE
    if edges.max() > COARSE or ndimage.binary_erosion(inside).sum() < MIN_VOXELS:
        return None
    mean = _blocks(volume, parts)
    lift = min(0.0, float(np.percentile(mean[inside], 1)))  # of z-scored volumes
    mean = np.where(inside, mean - lift, 0).astype(np.float32)
    around = _smooth(mean, SHADING / edges) / np.maximum(
        _smooth(inside.astype(np.float32), SHADING / edges), 1e-3
    )
    least = 1e-6 * float(np.abs(mean).max()) + 1e-30
    values = np.where(inside, mean / np.maximum(around, least) - 1, 0)
    return Tissue(values.astype(np.float32), inside, edges)


@dataclass(frozen=True)
class Move:
    """How the content of one volume lies to that of another."""

    distance: float  # mm, the mean over the brain
    shift: tuple[float, float, float]  # mm to the right, to the front and up
    angle: float  # degrees
    mirrored: bool  # left is right, after which the others are 0


TURNED = tuple(map(tuple, (TURN * np.eye(6)[3:]).tolist()))
MIRRORED = Move(0.0, (0.0, 0.0, 0.0), 0.0, mirrored=True)


def misplacement(reference: Tissue, other: Tissue, voxel: float) -> Move | None:
    """How `other` is moved against `reference`; None if it is not, or not clearly.

    A move is clear if its mean distance is over 2 mm and over a `voxel` (mm), and undoing it
    raises the mutual information by a third and by 0.04. A mirror image is clear if it raises
    the information as much again.
    """
    pair = _Pair(reference, other)
    best = pair.best(pair.starts())
    mirror = _Pair(reference, _mirrored(other))
    reflected, _ = mirror.best(mirror.starts())
    if _grown(reflected, best[0]):
        # A turn that the climb missed is no mirror image: climb from turns as well.
        best = max(best, pair.best(TURNED))
        if _grown(reflected, best[0]):
            return MIRRORED
    information, move = best
    points = pair.moved(move)
    distance = float(np.linalg.norm(points - pair.points, axis=1).mean())
    near = distance <= max(NEAR, voxel)
    if near or not _grown(information, pair.information((0.0,) * 6)):
        return None
    up, front, right = (points - pair.points).mean(axis=0).tolist()
    angle = np.rad2deg(np.linalg.norm(move[3:]) / ARM)
    return Move(distance, (right, front, up), float(angle), mirrored=False)


def _grown(information: float, before: float) -> bool:
    """Whether `information` clearly exceeds `before`, which is -1 if too few points overlap."""
    before = max(before, 0.0)
    return information > max(RATIO * before, before + GAIN)


def _mirrored(tissue: Tissue) -> Tissue:
    """The tissue with left and right exchanged."""
    flipped = tissue.values[:, :, ::-1], tissue.brain[:, :, ::-1]
    return Tissue(*map(np.ascontiguousarray, flipped), tissue.spacing)


class _Pair:
    """Two tissues, and the points of the first at which they are compared, in mm."""

    def __init__(self, reference: Tissue, other: Tissue):
        random = np.random.default_rng(0)
        indices = np.argwhere(ndimage.binary_erosion(reference.brain))
        indices = indices[random.integers(len(indices), size=POINTS)]
        # Between the voxels: at them nothing is interpolated, which looks like a match.
        indices = indices + random.uniform(-0.5, 0.5, indices.shape)
        blurred, edges = _blurred_with_bins(reference)
        values = ndimage.map_coordinates(blurred, indices.T, order=1)
        self.bins = np.digitize(values, edges)
        self.points = indices * reference.spacing
        self.middle = self.points.mean(axis=0)
        self.other, (self.blurred, self.edges) = other, _blurred_with_bins(other)
        self.offset = _centre(other) - _centre(reference)
        self.min_overlap = OVERLAP * self.sampled(self.points)[1].mean()

    def starts(self) -> list[tuple]:
        """Where to climb from: no move, and the centres on each other if they are far."""
        centred = (*self.offset.tolist(), 0.0, 0.0, 0.0)
        return [(0.0,) * 6] + [centred] * bool(np.linalg.norm(self.offset) > FAR)

    def best(self, starts: Iterable[tuple]) -> tuple[float, tuple]:
        """The most information that is reached from `starts`, and the move there."""
        return max(self.climb(start) for start in starts)

    def moved(self, move: tuple) -> np.ndarray:
        """The points after `move`: shifts along z, y, x and turns about them, in mm."""
        turn = Rotation.from_rotvec(np.array(move[3:]) / ARM).as_matrix()
        return (self.points - self.middle) @ turn.T + self.middle + move[:3]

    def sampled(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`points` in voxels of the other tissue, and which lie in its brain."""
        indices = (points / self.other.spacing).T
        nearest = np.rint(indices).astype(int)
        size = np.array(self.other.brain.shape)[:, None]
        inside = ((nearest >= 0) & (nearest < size)).all(axis=0)
        nearest = np.where(inside, nearest, 0)
        return indices, inside & self.other.brain[tuple(nearest)]

    def information(self, move: tuple) -> float:
        """The mutual information, in nats, after `move`; -1 where too few overlap."""
        indices, inside = self.sampled(self.moved(move))
        if inside.mean() < self.min_overlap or not inside.any():
            return -1.0
        values = ndimage.map_coordinates(self.blurred, indices[:, inside], order=1)
        pairs = self.bins[inside] * BINS + np.digitize(values, self.edges)
        joint = np.bincount(pairs, minlength=BINS**2).reshape(BINS, BINS)
        joint = joint / joint.sum()
        independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
        positive = joint > 0
        ratio = joint[positive] / independent[positive]
        return float((joint[positive] * np.log(ratio)).sum())

    def climb(self, start: tuple) -> tuple[float, tuple]:
        """The most information that steps from `start` lead to, and the move there."""
        best = self.information(start), tuple(start)
        for step in STEPS:
            for _ in range(ROUNDS):
                before = best[0]
                for axis in range(6):
                    move = best[1]
                    moves = [
                        (*move[:axis], move[axis] + s, *move[axis + 1 :]) for s in (step, -step)
                    ]
                    best = max(best, *((self.information(move), move) for move in moves))
                if best[0] == before:
                    break
        return best


def _blurred_with_bins(tissue: Tissue) -> tuple[np.ndarray, np.ndarray]:
    """The tissue blurred, and the edges of bins with as many voxels in each."""
    blurred = ndimage.gaussian_filter(tissue.values, BLUR / tissue.spacing)
    shares = np.linspace(0, 1, BINS + 1)[1:-1]
    return blurred, np.quantile(blurred[tissue.brain], shares)


def _centre(tissue: Tissue) -> np.ndarray:
    """The centre of the brain in mm from the first voxel."""
    return np.argwhere(tissue.brain).mean(axis=0) * tissue.spacing


def _smooth(volume: np.ndarray, sd: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(volume, sd, truncate=2.5, mode="constant")


def _blocks(volume: np.ndarray, parts: tuple[int, ...]) -> np.ndarray:
    """The means of blocks of `parts` voxels; what fills none at the end is left out."""
    for axis, part in enumerate(parts):
        lines = np.moveaxis(volume, axis, 0)
        lines = lines[: len(lines) // part * part]
        total = sum(lines[k::part] for k in range(part)) / np.float32(part)
        volume = np.moveaxis(total, 0, axis)
    return volume
