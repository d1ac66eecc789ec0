"""A brain as functions of position: folded cortex, white and deep grey matter, fluid.

Positions are in mm with the origin near the anterior commissure, as in stereotaxic
atlases. `side` is the distance from the midline, the same on the left and right.
"""

from dataclasses import dataclass

import numpy as np

from ummcsgm.data.phantom.shapes import (
    FAR,
    Points,
    blunt,
    depth_within,
    ellipsoid,
    look_up,
    ring_noise,
    share,
    smooth_max,
    smooth_min,
    tilted,
    tube,
)
from ummcsgm.types import Array

Layers = list[tuple[str, Array]]  # tissue and its share [N], each painted over the last


@dataclass(frozen=True)
class Build:
    """What differs between two healthy brains, besides the pattern of the folds."""

    ventricles: float  # width relative to the average
    atrophy: float  # mm, the width of a sulcus
    cortex: float  # mm, the thickness
    gyri: float  # mm from one gyrus to the next but one


@dataclass(frozen=True)
class Outline:
    """Depths [N] in mm inside the parts of the brain, folds filled."""

    hull: Array  # the cerebrum
    small: Array  # the cerebellum
    stem: Array
    head: Array  # all of them and what lies between, as skull-stripping leaves it


@dataclass(frozen=True)
class Brain:
    """Healthy tissue, painted in the order of `layers` over white matter."""

    layers: Layers
    hull: Array  # depth in mm below the outline of the cerebrum, folds filled
    tissue: Array  # depth in mm below the pia
    head: Array  # depth in mm below the edge that skull-stripping leaves


def draw_build(key: np.random.Generator) -> Build:
    """An adult brain: ventricles and sulci widen together, with age."""
    age = key.uniform(0, 1)
    return Build(
        ventricles=0.75 + 0.5 * age + key.uniform(-0.1, 0.2),
        atrophy=0.2 + 0.8 * age + key.uniform(0, 0.2),
        cortex=key.uniform(2.3, 2.7),
        gyri=key.uniform(21.5, 25.0),
    )


def cerebrum(at: Points) -> Array:
    """Depth inside both hemispheres with their temporal lobes, fissures closed."""
    narrow = 1 - 0.0013 * (at.y + 17)
    main = blunt(at.side / narrow, at.y + 17, at.z - 7, (66.0, 87.0, 70.0))
    notch = 15 * np.exp(-(((at.y + 46) / 18) ** 2) - (at.side / 24) ** 2)
    floor = at.z + 18 - notch - 4 * share(at.y - 30, 40.0)
    main = smooth_min(main, 0.9 * floor, 8.0)
    temporal = tilted(at.side - 45, at.y + 12, at.z + 20, (20.0, 40.0, 19.0), 0.28)
    return smooth_max(main, temporal, 3.0)


def cerebellum(at: Points) -> Array:
    """Depth inside the cerebellum."""
    lobe = ellipsoid(at.side - 23, at.y + 66, at.z + 39, (30.0, 27.0, 19.0))
    vermis = ellipsoid(at.x, at.y + 60, at.z + 27, (14.0, 23.0, 24.0))
    return smooth_max(lobe, vermis, 5.0)


def brainstem(at: Points) -> Array:
    """Depth inside midbrain, pons and medulla."""
    x, y, z = at.x, at.y, at.z
    peduncle = tube(at.side, y, z, [(15, -14, -3, 7), (8, -23, -20, 8)])
    arm = tube(at.side, y, z, [(9, -32, -31, 7), (19, -48, -34, 3.5)])
    midbrain = ellipsoid(x, y + 31, z + 12, (14.0, 9.0, 11.0))
    pons = ellipsoid(x, y + 26, z + 29, (16.0, 13.0, 13.0))
    medulla = tube(x, y, z, [(0, -34, -38, 9), (0, -41, -75, 6)])
    stem = smooth_max(smooth_max(midbrain, pons, 5.0), medulla, 5.0)
    return smooth_max(stem, np.maximum(peduncle, arm), 4.0)


def joined(at: Points) -> Array:
    """Depth inside the part of the midline plane where the hemispheres are joined."""
    return ellipsoid(np.zeros_like(at.y), at.y + 5, at.z - 5, (1.0, 38.0, 22.0))


def sylvian(at: Points) -> Array:
    """Distance from the Sylvian fissure and from the fluid over the insula."""
    over = (at.z + 3 + 0.40 * at.y) * 0.93
    behind = np.maximum(np.abs(at.y + 8 + 0.25 * over) - 27, 0)
    stem = np.sqrt(over**2 + np.maximum(39 - at.side, 0) ** 2 + behind**2)
    bowl = 39 - 0.012 * (at.y + 6) ** 2 - 0.012 * over**2
    rim = np.maximum(np.abs(over) - 13, 0) ** 2 + np.maximum(behind + 4, 0) ** 2
    return np.minimum(stem, np.sqrt((at.side - bowl) ** 2 + rim))


def foot(at: Points, hull: Array) -> tuple[list[Array], Array]:
    """Where the outline is met when leaving the core of the lobe, and the stretch.

    A quarter of the depth remains, so that noise looked up at the foot varies inward. The
    temporal lobes have a separate core.
    """
    temporal = (at.z < -5 - 0.40 * at.y) & (at.side > 22) & (at.y > -45)
    y = np.where(temporal, np.clip(at.y, -45, 14), np.clip(0.8 * at.y, -66, 40))
    core = (
        np.copysign(np.where(temporal, np.float32(44), np.float32(27)), at.x),
        y,
        np.where(temporal, -22.4 - 0.28 * y, np.float32(14)),
    )
    away = [p - c for p, c in zip((at.x, at.y, at.z), core, strict=True)]
    radius = np.sqrt(sum(a * a for a in away))
    stretch = 1 + 0.75 * np.maximum(hull, 0) / np.maximum(radius, 6)
    return [c + a * stretch for c, a in zip(core, away, strict=True)], stretch


def folds(key: np.random.Generator, build: Build, at: Points, hull: Array) -> Array:
    """Distance from the sulci: sheets that sink from the outline into the brain.

    A sheet is the zero set of noise looked up at the foot of the point. The noise and
    its slopes make a phase, hence a distance that stays true far from the sheet.
    """
    positions, stretch = foot(at, hull)
    fold = [look_up(v, *positions) for v in ring_noise(key, build.gyri, 0.18)]
    phase = np.arctan2(np.abs(fold[0]), np.sqrt(sum(v * v for v in fold[1:])))
    sheet = phase * build.gyri / (2 * np.pi * stretch)
    reach = 17 + 7 * look_up(ring_noise(key, 34.0, 0.3)[0], *positions)
    below = np.maximum(hull - np.clip(reach, 4, 32), 0)
    return np.hypot(sheet, below)


def folia(at: Points, depth: Array) -> Array:
    """Depth below the surface of the cerebellum, its fine fissures included."""
    out, up = np.hypot(0.8 * at.side, at.y + 42), at.z + 24
    angle = np.arctan2(up, out) + 0.05 * np.sin(at.x / 9)
    radius = np.hypot(out, up)
    outer = depth
    for count, reach in ((11, 14.0), (27, 5.0)):
        sheet = np.abs(np.arcsin(np.sin(count * angle))) * radius / count
        sheet = np.hypot(sheet, np.maximum(depth - reach, 0))
        outer = smooth_min(outer, sheet - 0.1, 1.5)
    return outer


def ventricles(at: Points, width: float) -> Array:
    """Depth inside the lateral, third and fourth ventricles."""
    front = [(14, 33, 2, 3.0), (10, 22, 8, 5.0), (7, 4, 15, 5.0), (9, -14, 20, 4.5)]
    front += [(15, -30, 17, 5.0), (24, -42, 10, 5.0)]
    back = [(33, -43, 11, 7.5), (35, -60, 5, 4.5), (31, -78, 4, 1.5)]
    below = [(33, -43, 9, 6.0), (44, -33, -6, 3.5), (42, -12, -19, 3.0)]
    front = [(x, y, 1.4 * z, width * r) for x, y, z, r in front]
    leaning = 1.4 * (at.z - 0.4 * (at.side - 9))
    horns = tube(at.side, at.y, leaning, front)
    for path in (back, below):
        path = [(x, y, z, width * r) for x, y, z, r in path]
        horns = np.maximum(horns, tube(1.35 * at.side, at.y, at.z, path))
    third = ellipsoid(at.x, at.y + 12, at.z + 1, (1.7 * width, 15.0, 11.0))
    fourth = ellipsoid(at.x, at.y + 45, at.z + 34, (6.0 * width, 5.0, 9.0))
    horns = np.minimum(0.8 * horns, at.side - 0.8)
    return np.maximum(horns, np.maximum(third, fourth))


def nuclei(at: Points) -> dict[str, Array]:
    """Depth inside the deep grey nuclei, by tissue."""
    side, y, z = at.side, at.y, at.z
    head = ellipsoid(side - 13.5, y - 14, z - 6, (5.5, 10.0, 9.5))
    tail = tube(side, y, z, [(14, 10, 12, 4.5), (18, -8, 21, 3), (25, -30, 19, 1.5)])
    lean = side - 26 + 0.28 * (y - 2)
    putamen = ellipsoid(lean, y - 2, z - 1, (5.0, 16.0, 10.5))
    striatum = np.maximum(np.maximum(head, tail), putamen)
    pallidum = ellipsoid(lean + 6.5, y + 3, z + 1, (3.2, 9.5, 6.5))
    thalamus = ellipsoid(side - 11 + 0.3 * (y + 18), y + 18, z - 7, (8.0, 14.0, 9.0))
    hippocampus = tube(side, y, z, [(24, -6, -19, 6), (28, -32, -10, 4)])
    names = ("striatum", "pallidum", "thalamus", "grey")
    return dict(zip(names, (striatum, pallidum, thalamus, hippocampus), strict=True))


def vessels(at: Points, hull: Array, tissue: Array) -> Array:
    """Depth inside the large vessels; the sinuses lie outside the `tissue`."""
    middle = [(6, 3, -18, 1.5), (20, 6, -15, 1.4), (36, 5, -13, 1.2), (41, -6, -2, 1)]
    front = [(2, 6, -16, 1.0), (1, 36, -8, 1.0), (1, 40, 12, 1.0), (1, 16, 33, 0.8)]
    basilar = [(0, -9, -18, 1.4), (0, -10, -45, 1.4)]
    galen = [(1.5, 0, 10, 0.9), (1, -42, 9, 1.5), (0, -52, 6, 2), (0, -92, -8, 2.2)]
    transverse = [(0, -95, -12, 2.6), (40, -82, -17, 2.8), (56, -60, -22, 2.8)]
    inner, outer = (
        np.maximum.reduce([tube(at.side, at.y, at.z, path) for path in paths])
        for paths in ((middle, front, basilar), (galen, transverse))
    )
    sagittal = np.where(at.z > 5, 1.8 - np.hypot(at.x, hull + 1.0), np.float32(FAR))
    outer = np.minimum(np.maximum(outer, sagittal), 1 - tissue)
    return np.maximum(inner, outer)


def cortex(key: np.random.Generator, build: Build, at: Points, hull: Array) -> tuple:
    """Depth below the pia of the cerebrum, and depth below its cortical ribbon's edge.

    They differ where the interhemispheric fissure ends on the corpus callosum, which
    is bare of cortex.
    """
    bend = ring_noise(key, 36.0, 0.3)[:2]
    rough, twist = (look_up(v, at.x, at.y, at.z) for v in bend)
    bent = Points(at.x + 1.6 * rough, at.y + 5 * twist, at.z - 3 * rough, at.step)
    wavy = Points(at.x + 5 * twist, bent.y, bent.z, at.step)
    width = build.atrophy
    gape = width * (0.5 * share(10 - hull, 20.0) + 0.2 * np.maximum(4 - hull, 0))
    union = joined(bent)
    split = np.hypot(bent.x, np.maximum(union, 0))
    centre = ellipsoid(at.x, at.y + 6, at.z - 8, (31.0, 46.0, 17.0))
    region = (hull > -4) & (centre < 8)
    folded = np.full_like(hull, -FAR)
    depth = np.minimum(hull, split)[region]
    folded[region] = folds(key, build, wavy.where(region), depth)
    folded = np.hypot(folded, np.maximum(centre, 0)) - gape
    folded = np.minimum(folded, sylvian(bent) - 0.5 * width - 0.2)
    surface = smooth_min(hull, folded, 3.0)
    split = split - 0.35 * width - 0.1
    bare = split + 1.5 * np.maximum(union + 5, 0)
    return smooth_min(surface, split, 3.0), smooth_min(surface, bare, 3.0), rough


def outline(at: Points) -> Outline:
    """Depths inside the parts of the brain, before any fold."""
    low = (at.z < 14) & (at.y < 6)
    hull = cerebrum(at)
    small = depth_within(low, at, cerebellum, FAR)
    stem = depth_within(low, at, brainstem, FAR)
    notch = ellipsoid(at.x, at.y + 40, at.z + 6, (17.0, 13.0, 15.0))
    below = smooth_max(smooth_max(small, stem, 6.0), notch, 9.0)
    head = smooth_max(below, hull, 13.0)
    return Outline(hull, small, stem, head)


def draw_brain(key: np.random.Generator, build: Build, at: Points, lines: Outline) -> Brain:
    """The brain of `build` at the points, the pattern of its folds drawn."""
    pia, ribbon, rough = cortex(key, build, at, lines.hull)
    leaf = np.full_like(pia, FAR)
    near = lines.small > -6
    leaf[near] = folia(at.where(near), lines.small[near])
    tissue = np.maximum(np.maximum(pia, leaf), lines.stem)
    below = share(np.maximum(lines.small, lines.stem) - lines.hull, 4 * at.step)
    grey = np.maximum(
        share(build.cortex - ribbon, at.step + 0.8) * (1 - below),
        share(1.7 - leaf, at.step) * (1 - share(lines.stem, at.step)) * below,
    )
    wet = 1 - share(tissue, at.step)
    stem = share(lines.stem, 2 + at.step)
    layers = [("grey", grey), ("brainstem", stem), ("fluid", wet), *deep(build, at)]
    rim = 0.5 + 0.8 * build.atrophy + 0.5 * rough
    return Brain(layers, lines.hull, tissue, lines.head + rim)


def deep(build: Build, at: Points) -> Layers:
    """The ventricles, cisterns and deep nuclei, in the order they are painted."""
    centre = (at.side < 46) & (at.y > -85) & (at.y < 46) & (at.z > -48) & (at.z < 40)
    inner = at.where(centre)
    cistern = ellipsoid(inner.x, inner.y - 3, inner.z + 15, (11.0, 8.0, 6.0))
    wet = np.maximum(ventricles(inner, build.ventricles), cistern)
    shares = [("fluid", share(wet, at.step))]
    shares += [(n, share(d, 1.5 + at.step)) for n, d in nuclei(inner).items()]
    plexus = tube(inner.side, inner.y, inner.z, [(23, -38, 10, 2.2), (10, -16, 19, 1)])
    shares += [("plexus", share(np.minimum(plexus, wet), at.step))]
    layers = []
    for name, part in shares:
        whole = np.zeros_like(at.x)
        whole[centre] = part
        layers.append((name, whole))
    return layers
