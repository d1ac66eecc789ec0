"""From tissues to signals: what the phantom's scanner measures.

Tissue parameters are those of about 1.5 T. A voxel holds two compartments, parenchyma
and fluid, whose signals add: mixing their relaxation times instead would draw a bright
line around every ventricle on FLAIR, which no scanner sees.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from ummcsgm.data.phantom.shapes import Points, plane_waves, smooth_field
from ummcsgm.types import Array

MODALITIES = ("flair", "t1", "t1c", "t2")
R1_GADOLINIUM = 4.5  # 1/(s mM)
R2_GADOLINIUM = 5.5  # 1/(s mM)


@dataclass(frozen=True)
class Tissue:
    """Proton density relative to water, relaxation times in ms."""

    pd: Array
    t1: Array
    t2: Array


@dataclass(frozen=True)
class Sequence:
    """Timing in ms; `ti` is None for a spin echo."""

    tr: float
    te: float
    ti: float | None


TISSUES = {
    "white": Tissue(0.68, 610.0, 78.0),
    "grey": Tissue(0.80, 1130.0, 91.0),
    "thalamus": Tissue(0.75, 860.0, 84.0),
    "striatum": Tissue(0.79, 1020.0, 85.0),
    "pallidum": Tissue(0.73, 780.0, 68.0),
    "brainstem": Tissue(0.71, 710.0, 82.0),
    "fluid": Tissue(1.0, 4200.0, 1700.0),
    "oedema": Tissue(0.82, 1350.0, 135.0),
    "tumour": Tissue(0.83, 1400.0, 128.0),
    "necrosis": Tissue(0.93, 2500.0, 250.0),
    "vessel": Tissue(0.50, 1300.0, 60.0),
    "plexus": Tissue(0.88, 1500.0, 130.0),
}


def spin_echo(tissue: Tissue, sequence: Sequence) -> Array:
    """Signal PD (1 - exp(-TR/T1)) exp(-TE/T2) of a spin echo."""
    recovered = 1 - np.exp(-sequence.tr / tissue.t1)
    return tissue.pd * recovered * np.exp(-sequence.te / tissue.t2)


def inversion_recovery(tissue: Tissue, sequence: Sequence) -> Array:
    """Signal |PD (1 - 2 exp(-TI/T1) + exp(-TR/T1)) exp(-TE/T2)| after an inversion."""
    inverted = 1 - 2 * np.exp(-sequence.ti / tissue.t1)
    recovered = inverted + np.exp(-sequence.tr / tissue.t1)
    return np.abs(tissue.pd * recovered * np.exp(-sequence.te / tissue.t2))


def signal(tissue: Tissue, sequence: Sequence) -> Array:
    """The signal of `sequence`: inversion recovery if it has a TI, else spin echo."""
    if sequence.ti is None:
        return spin_echo(tissue, sequence)
    return inversion_recovery(tissue, sequence)


@dataclass(frozen=True)
class Maps:
    """What is scanned: parenchyma [N], the share [N] of fluid beside it, the fluid."""

    dry: Tissue
    wet: Array
    fluid: Tissue
    white: Tissue  # as elsewhere in this subject, for noise and gain to refer to


def take_up(tissue: Tissue, gadolinium: Array) -> Tissue:
    """`tissue` with `gadolinium` (mM) in it: 1/T' = 1/T + r C, for T1 and for T2."""
    t1 = tissue.t1 / (1 + tissue.t1 * 1e-3 * R1_GADOLINIUM * gadolinium)
    t2 = tissue.t2 / (1 + tissue.t2 * 1e-3 * R2_GADOLINIUM * gadolinium)
    return Tissue(tissue.pd, t1, t2)


def null_time(t1: float, tr: float) -> float:
    """The TI (ms) at which inversion recovery gives no signal from a tissue of `t1`."""
    return t1 * (np.log(2) - np.log1p(np.exp(-tr / t1)))


def draw_tissues(key: np.random.Generator) -> dict[str, Tissue]:
    """This subject's tissues: each parameter off by about 4 %, independently."""
    spread = {"pd": 0.015, "t1": 0.05, "t2": 0.035}

    def vary(tissue: Tissue) -> Tissue:
        pd, t1, t2 = (np.exp(key.normal(0, sd)) for sd in spread.values())
        return Tissue(min(tissue.pd * pd, 1.0), tissue.t1 * t1, tissue.t2 * t2)

    return {name: vary(tissue) for name, tissue in TISSUES.items()}


def draw_protocol(key: np.random.Generator) -> dict[str, Sequence]:
    """This subject's sequences, TR and TE off by up to 15 %.

    FLAIR's TI follows from its TR, as on a scanner, which nulls the fluid; it misses
    the null point by up to 5 %. T1c repeats the timing of T1 up to 4 %.
    """

    def vary(time: float, share: float) -> float:
        return time * key.uniform(1 - share, 1 + share)

    flair_tr = vary(9000.0, 0.12)
    ti = vary(null_time(TISSUES["fluid"].t1, flair_tr), 0.05)
    t1 = Sequence(vary(480.0, 0.15), vary(11.0, 0.15), None)
    return {
        "flair": Sequence(flair_tr, vary(112.0, 0.12), ti),
        "t1": t1,
        "t1c": Sequence(vary(t1.tr, 0.04), vary(t1.te, 0.04), None),
        "t2": Sequence(vary(5000.0, 0.15), vary(95.0, 0.12), None),
    }


def compose(layers: list[tuple[str, Array]], tissues: dict[str, Tissue]) -> Maps:
    """The maps of `layers`, each a tissue and its share [N] of the samples.

    A layer covers those before it; the ground is white matter.
    """
    ground = vars(tissues["white"]).values()
    maps = [np.full_like(layers[0][1], value) for value in ground]
    wet = np.zeros_like(layers[0][1])
    for name, part in layers:
        if name == "fluid":
            wet += part * (1 - wet)
            continue
        wet *= 1 - part
        weight = part / np.maximum(1 - wet, 1e-6)
        for values, value in zip(maps, vars(tissues[name]).values(), strict=True):
            values += weight * (value - values)
    return Maps(Tissue(*maps), wet, tissues["fluid"], tissues["white"])


def draw_maps(key: np.random.Generator, layers: list[tuple[str, Array]], at: Points) -> Maps:
    """The maps of `layers` in this subject; T1 and T2 wave by 3 % across the brain."""
    maps = compose(layers, draw_tissues(key))
    t1, t2 = (1 + 0.03 * plane_waves(key, at, 6) for _ in range(2))
    dry = Tissue(maps.dry.pd, maps.dry.t1 * t1, maps.dry.t2 * t2)
    return replace(maps, dry=dry)


def scan(maps: Maps, sequence: Sequence) -> Array:
    """The signal [N] of each sample, that of its parenchyma and of its fluid added."""
    dry = signal(maps.dry, sequence) * (1 - maps.wet)
    return dry + signal(maps.fluid, sequence) * maps.wet


def draw_bias(key: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Array:
    """A smooth field [X, Y, Z] around 1, whose logarithm has an sd of `low` to `high`
    over the field of view."""
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in shape]
    return np.exp(key.uniform(low, high) * smooth_field(key, axes, 3))


def measure(
    key: np.random.Generator, clean: Array, white: float, coil: Array, volume: float
) -> Array:
    """`clean` [X, Y, Z] as the scanner gives it: blur, bias, Rician noise, gain.

    `white` is the signal of white matter, to which noise and gain (an arbitrary number
    of units a subject) refer. The SNR is 20 to 30 in 1 mm^3; a voxel of `volume` mm^3
    averages that many. `coil` is the receive coil's bias,
    the same for every sequence of a session; what each adds to it is small.
    """
    bias = coil * draw_bias(key, clean.shape, 0.01, 0.03)
    gain = np.exp(key.uniform(np.log(180), np.log(700))) / white
    sd = np.float32(white / key.uniform(20, 30) / np.sqrt(volume))
    blurred = ndimage.gaussian_filter(clean, key.uniform(0.35, 0.6), truncate=3)
    real, imaginary = key.standard_normal((2, *clean.shape), dtype=np.float32) * sd
    noisy = np.hypot(blurred * bias + real, imaginary)
    return np.clip(np.rint(noisy * np.float32(gain)), 1, 32767).astype(np.int16)
