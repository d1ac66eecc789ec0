"""A tumour in the phantom's brain: its growth and, independently, its uptake.

The uptake of gadolinium has a separate random stream and is independent of the other contrasts. The
grade follows from the finished tumour: high if it is necrotic or enhances brightly.
"""

from dataclasses import dataclass

import numpy as np

from ummcsgm.data.phantom.anatomy import Brain, Layers, cerebrum
from ummcsgm.data.phantom.shapes import FAR, Points, depth_within, look_up, ring_noise, share
from ummcsgm.types import Array

REACH = 42.0  # mm beyond its radius where a tumour and its oedema are looked for
NONE = "none"
PATTERNS = {"ring": 0.36, "solid": 0.10, "patchy": 0.29, NONE: 0.25}
AMOUNT = (0.15, 1.2)  # mM of gadolinium, log-uniform between
NECROTIC = 0.45  # with PATTERNS, 7 tumours in 10 are of high grade


@dataclass(frozen=True)
class Seat:
    """Where a tumour sits, in mm, and by what share it pushes tissue outward."""

    centre: tuple[float, float, float]
    radius: float
    push: float


@dataclass(frozen=True)
class Tumour:
    """Shares [N] of a sample; `depth` in mm below the tumour's surface."""

    necrotic: bool
    depth: Array
    oedema: Array
    solid: Array
    necrosis: Array
    layers: Layers  # of these, to be painted over the brain's


@dataclass(frozen=True)
class Dose:
    """What decides the uptake: its pattern, mM in the tumour and in blood, mm of a ring."""

    pattern: str
    amount: float
    in_blood: float
    width: float


@dataclass(frozen=True)
class Uptake:
    """Gadolinium [N] in mM, in the tumour and with that in vessels, and its pattern."""

    pattern: str
    tumour: Array
    total: Array


def draw_seat(key: np.random.Generator) -> Seat:
    """A position in the white matter of either hemisphere, and a radius that fits there."""
    side = key.choice([-1.0, 1.0]) * key.uniform(20, 44)
    centre = (float(side), key.uniform(-64, 40), key.uniform(-2, 44))
    room = cerebrum(Points(*(np.float32([c]) for c in centre), 1.0))[0]
    radius = min(key.uniform(11, 29), float(room) + 7)
    return Seat(centre, max(radius, 9.0), key.uniform(0.1, 0.5))


def offsets(seat: Seat, at: Points) -> tuple[list[Array], Array]:
    """Position [N] relative to the seat, and distance [N] from it, in mm."""
    away = [p - c for p, c in zip((at.x, at.y, at.z), seat.centre, strict=True)]
    return away, np.sqrt(sum(a * a for a in away))


def pushed(seat: Seat, at: Points) -> Points:
    """Where the tissue now at the points was before the tumour grew."""
    away, distance = offsets(seat, at)
    pull = 1 - seat.push * np.exp(-((distance / (1.7 * seat.radius)) ** 2))
    moved = (c + a * pull for c, a in zip(seat.centre, away, strict=True))
    return Points(*moved, at.step)


def draw_tumour(key: np.random.Generator, seat: Seat, at: Points, brain: Brain) -> Tumour:
    """The tumour at `seat`; its oedema runs along white matter and spares cortex."""
    necrotic = draw_necrotic(key)
    extent = key.uniform(8, 26) if necrotic else key.uniform(0, 10)
    rim = key.uniform(2.5, 7.0)
    _, distance = offsets(seat, at)
    near = distance < seat.radius + REACH
    rough, *fingers = (look_near(v, near, at) for v in ring_noise(key, 23.0, 0.35)[:3])
    depth = seat.radius * (1 + 0.24 * rough) - distance
    depth = np.where(near, np.minimum(depth, 2 * brain.hull - 2), np.float32(FAR))
    spread = depth + extent * (0.8 + 0.75 * fingers[0])
    white = np.ones_like(brain.hull)  # what the layers leave of it; deep nuclei hold oedema too
    for name, part in brain.layers:
        white *= 1 - part * (1.0 if name in ("grey", "fluid") else 0.6)
    hold = share(brain.tissue - 3.5, 3.0) * white
    oedema = share(spread, 5.0) * hold
    solid = share(depth, 1.8)
    necrosis = share(depth - rim - 2.5 * fingers[1], 2.0) * np.float32(necrotic)
    layers = [("oedema", 0.9 * oedema), ("tumour", solid), ("necrosis", necrosis)]
    layers.insert(2, ("white", key.uniform(0, 0.4) * solid * share(fingers[1], 1.5)))
    return Tumour(necrotic, depth, oedema, solid, necrosis, layers)


def draw_necrotic(key: np.random.Generator) -> bool:
    """Whether the tumour's centre is dead: what is drawn of it after its seat."""
    return bool(key.uniform() < NECROTIC)


def look_near(lattice: Array, near: Array, at: Points) -> Array:
    """`lattice` looked up where `near`, 0 elsewhere."""
    return depth_within(near, at, lambda p: look_up(lattice, p.x, p.y, p.z), 0.0)


def draw_dose(key: np.random.Generator) -> Dose:
    """Pattern and amounts of gadolinium, the same whatever the tumour is."""
    pattern = str(key.choice(list(PATTERNS), p=list(PATTERNS.values())))
    amount = float(np.exp(key.uniform(np.log(AMOUNT[0]), np.log(AMOUNT[1]))))
    return Dose(pattern, amount, key.uniform(0.4, 2.5), key.uniform(2.0, 6.5))


def draw_uptake(key: np.random.Generator, tumour: Tumour, at: Points, leaky: Array) -> Uptake:
    """Gadolinium in ring, solid, patchy or no pattern, and in `leaky` [N], as in blood.

    Dead tissue takes up a tenth. The draws are the same whatever the tumour is.
    """
    dose = draw_dose(key)
    solid = tumour.depth > -3
    noise = look_near(ring_noise(key, 15.0, 0.4)[0], solid, at)
    profile = {
        "ring": share(dose.width + 1.4 * noise - tumour.depth, 1.5) * (1 + 0.2 * noise),
        "solid": 0.8 + 0.15 * noise,
        "patchy": share(noise - 0.5, 0.6),
        NONE: np.zeros_like(noise),
    }[dose.pattern]
    alive = tumour.solid * (1 - 0.9 * tumour.necrosis)
    inside = np.float32(dose.amount) * np.maximum(profile, 0) * alive
    return Uptake(dose.pattern, inside, inside + dose.in_blood * leaky)


def grade(tumour: Tumour, uptake: Uptake) -> str:
    """HGG if the tumour is necrotic or enhances as a ring or throughout, else LGG."""
    high = tumour.necrotic or uptake.pattern in ("ring", "solid")
    return "HGG" if high else "LGG"


def segmentation(oedema: Array, solid: Array, gadolinium: Array) -> Array:
    """BraTS labels: 2 oedema, 1 non-enhancing core, 4 enhancing; 0 elsewhere."""
    labels = np.where(oedema > 0.4, 2, 0)
    labels[solid > 0.5] = 1
    labels[(solid > 0.5) & (gadolinium > 0.08)] = 4
    return labels.astype(np.uint8)
