"""Shapes as functions of position, and smooth random fields: a phantom's raw material.

A shape is its signed depth in mm, positive inside, right to first order in the distance from its
surface; so a soft edge of one sample's width keeps coarse grids free of jagged steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from ummcsgm.types import Array

FAR = -99.0  # mm; the depth where a shape has not been looked for
LATTICE, PITCH = 64, 2.9  # noise repeats after 186 mm, longer than a brain


@dataclass(frozen=True)
class Points:
    """Positions [N] in mm: x to the right, y forward, z up; `step` apart."""

    x: Array
    y: Array
    z: Array
    step: float

    @property
    def side(self) -> Array:
        """Distance [N] from the midline in mm, the same on the left and right."""
        return np.abs(self.x)

    def where(self, region: Array) -> "Points":
        """The points at which `region` [N] is true."""
        return Points(self.x[region], self.y[region], self.z[region], self.step)


def depth_within(
    region: Array, at: Points, depth: Callable[[Points], Array], outside: float
) -> Array:
    """`depth` [N] of the points where `region` is true, and `outside` elsewhere."""
    found = np.full_like(at.x, outside)
    found[region] = depth(at.where(region))
    return found


def share(depth: Array, width: float) -> Array:
    """How much of a sample lies inside, 0 to 1: a ramp of `width` mm about depth 0."""
    return np.clip(depth / width + 0.5, 0, 1)


def smooth_min(a: Array, b: Array, width: float) -> Array:
    """The smaller of both, its crease rounded over `width`."""
    overlap = np.maximum(width - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap * (0.25 / width)


def smooth_max(a: Array, b: Array, width: float) -> Array:
    """The larger of both, its crease rounded over `width`."""
    overlap = np.maximum(width - np.abs(a - b), 0)
    return np.maximum(a, b) + overlap * overlap * (0.25 / width)


def ellipsoid(x: Array, y: Array, z: Array, radii: tuple) -> Array:
    """Depth in mm inside an ellipsoid at the origin, its axes along x, y, z."""
    u, v, w = x / radii[0], y / radii[1], z / radii[2]
    size = np.sqrt(u * u + v * v + w * w) + 1e-6
    u, v, w = u / radii[0], v / radii[1], w / radii[2]
    return size * (1 - size) / (np.sqrt(u * u + v * v + w * w) + 1e-6)


def blunt(x: Array, y: Array, z: Array, radii: tuple) -> Array:
    """Depth in mm inside an ellipsoid swollen towards its corners (powers of 2.25)."""
    u, v, w = (np.abs(p) / r + 1e-4 for p, r in zip((x, y, z), radii, strict=True))
    up, vp, wp = (q * np.sqrt(np.sqrt(q)) for q in (u, v, w))
    size = (u * up + v * vp + w * wp) ** np.float32(1 / 2.25)
    slope = (up / radii[0]) ** 2 + (vp / radii[1]) ** 2 + (wp / radii[2]) ** 2
    return (1 - size) * size * np.sqrt(np.sqrt(size)) / np.sqrt(slope)


def tilted(x: Array, y: Array, z: Array, radii: tuple, slope: float) -> Array:
    """Depth in an ellipsoid whose long axis, y, rises backwards by `slope`."""
    norm = np.sqrt(1 + slope * slope)
    return ellipsoid(x, (y - slope * z) / norm, (z + slope * y) / norm, radii)


def tube(x: Array, y: Array, z: Array, path: list[tuple]) -> Array:
    """Depth in mm inside a tube along `path`, a list of (x, y, z, radius)."""
    best = np.full_like(x, FAR)
    for (ax, ay, az, ar), (bx, by, bz, br) in zip(path, path[1:], strict=False):
        dx, dy, dz = bx - ax, by - ay, bz - az
        ox, oy, oz = x - ax, y - ay, z - az
        along = (ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
        along = np.clip(along, 0, 1)
        gap = (ox - along * dx) ** 2 + (oy - along * dy) ** 2 + (oz - along * dz) ** 2
        best = np.maximum(best, ar + along * (br - ar) - np.sqrt(gap))
    return best


def ring_noise(key: np.random.Generator, wavelength: float, band: float) -> list[Array]:
    """Noise of unit sd around a `wavelength` (mm) and its three slopes per radian."""
    white = key.standard_normal((LATTICE,) * 3, dtype=np.float32)
    unit = PITCH / wavelength
    full = np.fft.fftfreq(LATTICE, unit).astype(np.float32)
    half = np.fft.rfftfreq(LATTICE, unit).astype(np.float32)
    waves = full[:, None, None], full[None, :, None], half[None, None, :]
    size = np.sqrt(sum(k * k for k in waves))
    spectrum = fft.rfftn(white) * np.exp(-((size - 1) ** 2) / (2 * band**2))
    value = fft.irfftn(spectrum, s=white.shape)
    spectrum *= 1j / value.std()
    slopes = [fft.irfftn(spectrum * k, s=white.shape) for k in waves]
    return [value / value.std(), *slopes]


def look_up(lattice: Array, x: Array, y: Array, z: Array) -> Array:
    """`lattice` [n, n, n] at positions in mm, linear between its points, periodic."""
    where = np.stack([x, y, z]) / np.float32(PITCH)
    return ndimage.map_coordinates(lattice, where, order=1, mode="grid-wrap")


def plane_waves(key: np.random.Generator, at: Points, number: int) -> Array:
    """A sum [N] of unit sd of `number` waves 25 to 70 mm long, in any direction."""
    total = np.zeros_like(at.x)
    for _ in range(number):
        k = key.normal(size=3)
        k *= 2 * np.pi / (key.uniform(25, 70) * np.linalg.norm(k))
        k, phase = k.astype(np.float32), np.float32(key.uniform(0, 2 * np.pi))
        total += np.cos(k[0] * at.x + k[1] * at.y + k[2] * at.z + phase)
    return total * np.float32(np.sqrt(2 / number))


def smooth_field(key: np.random.Generator, axes: list[Array], waves: int) -> Array:
    """A random field on the grid of `axes`, of up to `waves` half waves.

    Axes are in units of the field of view, -0.5 to 0.5, so the field does not depend
    on the grid it is sampled on; its sd over the whole field of view is 1.
    """
    order = np.arange(waves + 1)
    orders = np.meshgrid(order, order, order)
    weight = 1 / (1 + sum(n**2 for n in orders))
    weight = weight * key.normal(size=weight.shape)
    weight[0, 0, 0] = 0
    power = np.prod([np.where(n == 0, 1.0, 0.5) for n in orders], axis=0)
    weight /= np.sqrt(np.sum(power * weight**2))
    bases = [np.cos(np.pi * np.outer(order, axis + 0.5)) for axis in axes]
    x, y, z = (basis.astype(np.float32) for basis in bases)
    rows = np.einsum("abc,cz->abz", weight.astype(np.float32), z)
    return np.einsum("ayz,ax->xyz", np.einsum("abz,by->ayz", rows, y), x)
