"""One test subject before any method: its questions, its slices, and how it grades.

Whoever answers, mm-CSN, floor or competitor, is asked the same and scored the same.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from ummcsgm.data.crop import ImageSpace, uncrop
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.subjects import (
    PreparedSubject,
    network_brain,
    network_slices,
    network_stacks,
    prepare_subject,
)
from ummcsgm.evaluation.metrics import NO_ERROR
from ummcsgm.evaluation.protocols import (
    TABLE1,
    ScoredVolume,
    grey_levels_per_unit,
    score,
    scored_slices,
)
from ummcsgm.inference.predictor import slice_addresses
from ummcsgm.types import Array, Estimate, InputError


@dataclasses.dataclass(frozen=True)
class Asked:
    """The questions that a subject can be asked: what is missing, what is scored.

    Missing [Q, M] is also what the subject was never scanned with; it has no truth.
    """

    missing: Array
    scored: Array


def asked_of(questions: Array, present: Array) -> Asked:
    """Those of `questions` [Q, M] that have a truth in what is `present` [M], and leave
    something of it to be seen."""
    possible = ~(questions & ~present).any(axis=1) & (present & ~questions).any(axis=1)
    return Asked(questions[possible] | ~present, questions[possible])


@dataclasses.dataclass(frozen=True)
class Sitting:
    """A subject, what it is asked, and the slices `z` that are scored."""

    subject: Subject
    prepared: PreparedSubject
    modalities: tuple[str, ...]
    asked: Asked
    z: Array

    @property
    def names(self) -> dict[str, str]:
        """What tells the subject in a row of numbers."""
        return {"subject": self.subject.name, "group": self.subject.group}

    def named(self, missing: Array) -> str:
        """The modalities of `missing` [M], joined by "+"."""
        return "+".join(np.array(self.modalities)[missing])

    def slices(self, z: Array) -> Array:
        """The truth in the slices `z`, [S, H, W, M]; 0 where there is no scan."""
        return network_slices(self.prepared, self.modalities, z)

    def brain(self, z: Array) -> Array:
        """Where the brain is in the slices `z`, [S, H, W] bool."""
        return network_brain(self.prepared, z)

    def grey(self, channel: int) -> float:
        """Grey levels of 1 in the network's scale of a modality."""
        name = self.modalities[channel]
        volume = self.prepared.case.volumes[name]
        scale = grey_levels_per_unit(volume, self.prepared.brain, TABLE1)
        return scale * self.prepared.scales[name]


def sit(subject: Subject, space: ImageSpace, questions: Array) -> Sitting:
    """The subject, those of `questions` [Q, M] that it has a truth for, and the slices
    that are scored."""
    prepared = prepare_subject(subject, space.modalities, space.view)
    present = np.array([name in prepared.scales for name in space.modalities])
    try:
        z = scored_slices(prepared.brain, TABLE1)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    return Sitting(subject, prepared, space.modalities, asked_of(questions, present), z)


def spread(z: Array, count: int) -> Array:
    """`count` of `z`, evenly spread and away from the ends; all of them for 0."""
    if not 0 < count < len(z):
        return z
    return z[((np.arange(count) + 0.5) * len(z) / count).astype(int)]


def answers_of(sitting: Sitting, z: Array, predict: Callable) -> Array | Estimate:
    """What predict(images, missing) gives to all questions, [Q, S, ...]."""
    shape = (len(sitting.asked.missing), len(z))
    output = predict(*_inputs(sitting, z))
    return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), output)


def first_draws(sitting: Sitting, z: Array, sample: Callable) -> Array:
    """Draw 0 of all questions, [Q, S, H, W, M], by a sampler that starts from the prior."""
    missing = sitting.asked.missing
    addresses = np.tile(slice_addresses(sitting.subject.name, z, draw=0), (len(missing), 1))
    drawn = next(sample(*_inputs(sitting, z), addresses[None]))
    return drawn.reshape(len(missing), len(z), *drawn.shape[1:])


def _inputs(sitting: Sitting, z: Array) -> tuple[Array, Array]:
    images = network_stacks(sitting.prepared, sitting.modalities, z)
    missing = sitting.asked.missing
    return np.tile(images, (len(missing), 1, 1, 1)), np.repeat(missing, len(z), axis=0)


def grade(sitting: Sitting, z: Array, missing: Array, channel: int, images: Array) -> dict:
    """The scores of modality `channel` in answers [S, H, W, M] to one question; None
    for the PSNR of answers without any error.

    Raises:
        InputError: there is nothing to scale the truth by.
    """
    prepared, name = sitting.prepared, sitting.modalities[channel]
    slices = images[..., channel] * sitting.brain(z)
    estimate = uncrop(prepared.window, slices) * prepared.scales[name]
    truth = prepared.case.volumes[name]
    facts = {"missing": sitting.named(missing), "modality": name, "slices": len(z)}
    scores = score(TABLE1, ScoredVolume(truth, estimate, prepared.brain, slices=z))
    for metric, value in scores.items():
        if isinstance(value, str) and value != NO_ERROR:
            raise InputError(f"subject {sitting.subject.name}, {metric} of {name}: {value}")
    return facts | {m: None if v == NO_ERROR else v for m, v in scores.items()}


def absolute_error(sitting: Sitting, z: Array, channel: int, images: Array) -> float:
    """Mean absolute error over the brain's voxels, in grey levels, of answers
    [S, H, W, M]: the CRPS of what is no draw."""
    inside = sitting.brain(z)
    error = (images - sitting.slices(z))[..., channel][inside]
    return float(np.mean(np.abs(error), dtype=np.float64) * sitting.grey(channel))


def grey_images(sitting: Sitting, z: Array, images: Array) -> Array:
    """[M, S, H, W] grey levels of answers [Q, S, H, W, M], each modality's where it
    alone is scored.

    On the network's grid: subjects' own frames may differ in size. All 0 where the
    subject was not scanned or cannot be asked.
    """
    grid = images.shape[2:4]
    shown = np.zeros((len(sitting.modalities), len(z), *grid), np.float32)
    brain = sitting.brain(z)
    for question in np.flatnonzero(sitting.asked.scored.sum(axis=1) == 1):
        channel = int(np.argmax(sitting.asked.scored[question]))
        image = np.nan_to_num(images[question, ..., channel])
        shown[channel] = image * brain * sitting.grey(channel)
    return np.clip(shown, 0, TABLE1.peak).astype(np.float32)


def true_images(sitting: Sitting, z: Array) -> Array:
    """[M, S, H, W] grey levels of the truth, as `grey_images` has answers."""
    truth = sitting.slices(z)
    every = np.broadcast_to(truth, (len(sitting.asked.missing), *truth.shape))
    return grey_images(sitting, z, every)
