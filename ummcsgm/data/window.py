"""The network's grid laid over axial slices: cut out, and pasted back exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ummcsgm.types import InputError


@dataclass(frozen=True)
class Window:
    """A rectangle of `grid` whose corner lies at `origin` of slices of `frame`."""

    grid: tuple[int, int]  # H, W
    origin: tuple[int, int]  # y, x; below 0 where the grid begins before the frame
    frame: tuple[int, int]  # Y, X


def brain_mask(volumes: Iterable[np.ndarray]) -> np.ndarray:
    """True [Z, Y, X] where any of `volumes` [Z, Y, X] is not 0."""
    return np.logical_or.reduce([volume != 0 for volume in volumes])


def window_around(brain: np.ndarray, grid: tuple[int, int]) -> Window:
    """The window of `grid` centred on the bounding box of `brain` [Z, Y, X] bool.

    Raises:
        InputError: there is no brain, or it does not fit in the grid.
    """
    area = brain.any(axis=0)
    if not area.any():
        raise InputError("there is no brain: every voxel is 0")
    (top, height), (left, width) = _extent(area.any(axis=1)), _extent(area.any(axis=0))
    if height > grid[0] or width > grid[1]:
        raise InputError(
            f"the brain is {height} x {width} voxels and does not fit in "
            f"config.data.grid, which is {grid[0]} x {grid[1]}"
        )
    origin = (top - (grid[0] - height) // 2, left - (grid[1] - width) // 2)
    return Window((grid[0], grid[1]), origin, (brain.shape[1], brain.shape[2]))


def cut(window: Window, volume: np.ndarray) -> np.ndarray:
    """What of `volume` [..., Y, X] lies in the window [..., H, W]; 0 off the frame."""
    slices = np.zeros((*volume.shape[:-2], *window.grid), volume.dtype)
    on_frame, on_grid = _overlap(window)
    slices[(..., *on_grid)] = volume[(..., *on_frame)]
    return slices


def paste(window: Window, slices: np.ndarray) -> np.ndarray:
    """`slices` [..., H, W] in their place on the frame [..., Y, X]; 0 elsewhere."""
    volume = np.zeros((*slices.shape[:-2], *window.frame), slices.dtype)
    on_frame, on_grid = _overlap(window)
    volume[(..., *on_frame)] = slices[(..., *on_grid)]
    return volume


def _extent(line: np.ndarray) -> tuple[int, int]:
    """The first True of `line`, and the length to the last."""
    places = np.flatnonzero(line)
    return int(places[0]), int(places[-1] - places[0] + 1)


def _overlap(window: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part that frame and grid share, in the indices of either."""
    on_frame, on_grid = [], []
    axes = zip(window.grid, window.origin, window.frame, strict=True)
    for size, origin, frame in axes:
        start, stop = max(origin, 0), min(origin + size, frame)
        on_frame.append(slice(start, stop))
        on_grid.append(slice(start - origin, stop - origin))
    return tuple(on_frame), tuple(on_grid)
