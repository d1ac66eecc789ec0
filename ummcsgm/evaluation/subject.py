"""A test subject as evaluation uses it: what can be missing, which slices are scored.

Every method predicts the same slices of the same missing patterns and is scored by
`score_prediction`, whichever method it is. Q is the number of missing patterns, S of
slices, M of modalities.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ummcsgm.data.crop import ImageSpace, uncrop
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import spacing_in_plane
from ummcsgm.data.subjects import (
    PreparedSubject,
    network_brain,
    network_labels,
    network_slices,
    network_stacks,
    prepare_subject,
    read_labels,
)
from ummcsgm.evaluation.metrics import NoErrorError
from ummcsgm.evaluation.protocols import (
    TABLE1,
    Reason,
    ScoredVolume,
    grey_levels_per_unit,
    score,
    scored_slices,
)
from ummcsgm.inference.predictor import slice_addresses
from ummcsgm.types import Array, Estimate, InputError, Missing, Stacks


class SubjectSlices(NamedTuple):
    """Some slices of one subject, in the network's scale and on its grid."""

    name: str
    z: Array  # [S]
    images: Stacks
    brain: Array  # [S, H, W] bool
    grey: Array  # [M] grey levels of 1 in the network's scale; 0 where there is no scan


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedSubject:
    """A subject that has been read, its missing patterns and the slices that are scored.

    `missing` [Q, M] includes what the subject was never scanned with; `scored` [Q, M] is
    the part of it that has a truth.
    """

    subject: Subject
    prepared: PreparedSubject
    modalities: tuple[str, ...]
    missing: Missing
    scored: Missing
    z: Array

    @property
    def labels(self) -> dict[str, str]:
        """The subject's columns in a row of numbers."""
        return {"subject": self.subject.name, "group": self.subject.group}

    @functools.cached_property
    def grey(self) -> Array:
        """[M] grey levels of 1 in the network's scale; 0 where there is no scan."""
        grey = np.zeros(len(self.modalities))
        for channel, name in enumerate(self.modalities):
            if name in self.prepared.scales:
                volume = self.prepared.volumes[name]
                levels = grey_levels_per_unit(volume, self.prepared.brain, TABLE1)
                grey[channel] = levels * self.prepared.scales[name]
        return grey

    def pattern_name(self, missing: Array) -> str:
        """The modalities of a pattern [M], joined by "+"."""
        return "+".join(np.array(self.modalities)[missing])

    def truth(self, z: Array) -> Array:
        """[S, H, W, M] the real images; 0 where there is no scan."""
        return network_slices(self.prepared, self.modalities, z)

    def brain(self, z: Array) -> Array:
        """[S, H, W] bool: where the brain is."""
        return network_brain(self.prepared, z)

    @property
    def pixel(self) -> Array:
        """[2] mm of a pixel of the network's grid, along rows and columns."""
        return np.array(self.prepared.window.step) * spacing_in_plane(self.prepared.geometry)

    @functools.cached_property
    def segmentation(self) -> Array | None:
        """[Z, Y, X] int8 labels of `data.labels`; None where the subject has no segmentation.

        Raises:
            InputError: it does not fit the scans.
        """
        return read_labels(self.subject, self.prepared)

    def segmentation_on(self, z: Array) -> Array | None:
        """[S, H, W] int8: the segmentation of the slices `z` on the network's grid, or None."""
        labels = self.segmentation
        return None if labels is None else network_labels(self.prepared, labels, z)

    def slices(self, z: Array) -> SubjectSlices:
        """The slices `z` with their neighbours, and what makes grey levels of them."""
        stacks = network_stacks(self.prepared, self.modalities, z)
        return SubjectSlices(self.subject.name, z, stacks, self.brain(z), self.grey)


def read_subject(subject: Subject, space: ImageSpace, patterns: Missing) -> EvaluatedSubject:
    """The subject, read from its files, with those of `patterns` [Q, M] that it can have.

    Raises:
        InputError: a file is wrong, or no slice is scored.
    """
    prepared = prepare_subject(subject, space.modalities, space.view)
    present = np.array([name in prepared.scales for name in space.modalities])
    try:
        z = scored_slices(prepared.brain, TABLE1)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    missing, scored = possible_patterns(patterns, present)
    return EvaluatedSubject(subject, prepared, space.modalities, missing, scored, z)


def possible_patterns(patterns: Missing, present: Array) -> tuple[Missing, Missing]:
    """(missing, scored), each [Q, M]: the patterns of which everything has a truth in what
    is `present` [M], and something of that stays seen."""
    possible = ~(patterns & ~present).any(axis=1) & (present & ~patterns).any(axis=1)
    return patterns[possible] | ~present, patterns[possible]


def choose_evenly(z: Array, count: int) -> Array:
    """`count` of the slices `z`, evenly apart and away from the ends; all of them for 0."""
    if not 0 < count < len(z):
        return z
    return z[((np.arange(count) + 0.5) * len(z) / count).astype(int)]


def predict_patterns(evaluated: EvaluatedSubject, z: Array, predict: Callable) -> Estimate:
    """What `predict(images, missing)` estimates of slices `z` for all patterns, [Q, S, H, W, M]."""
    if not len(evaluated.missing):
        return Estimate(evaluated.truth(z)[None][:0], None)
    estimate = predict(*_inputs(evaluated, z))
    shape = (len(evaluated.missing), len(z))
    return estimate.map(lambda images: images.reshape(*shape, *images.shape[1:]))


def sample_patterns(evaluated: EvaluatedSubject, z: Array, sample: Callable) -> Array:
    """[Q, S, H, W, M] draw 0 of slices `z` for all patterns, by a sampler that starts from
    the prior."""
    if not len(evaluated.missing):
        return evaluated.truth(z)[None][:0]
    addresses = slice_addresses(evaluated.subject.name, z, draw=0)
    addresses = np.tile(addresses, (len(evaluated.missing), 1))
    drawn = next(sample(*_inputs(evaluated, z), addresses[None]))
    return drawn.reshape(len(evaluated.missing), len(z), *drawn.shape[1:])


def _inputs(evaluated: EvaluatedSubject, z: Array) -> tuple[Stacks, Missing]:
    """(images, missing) of Q S rows, pattern by pattern."""
    images = network_stacks(evaluated.prepared, evaluated.modalities, z)
    missing = evaluated.missing
    return np.tile(images, (len(missing), 1, 1, 1)), np.repeat(missing, len(z), axis=0)


def score_prediction(
    evaluated: EvaluatedSubject, z: Array, missing: Array, channel: int, images: Array
) -> dict:
    """The scores of modality `channel` in predictions [S, H, W, M] for one pattern [M].

    PSNR is None where the prediction has no error at all.

    Raises:
        InputError: there is nothing to scale the truth by.
    """
    prepared, name = evaluated.prepared, evaluated.modalities[channel]
    images = images[..., channel] * evaluated.brain(z)
    estimate = uncrop(prepared.window, images) * prepared.scales[name]
    truth = prepared.volumes[name]
    scores = score(TABLE1, ScoredVolume(truth, estimate, prepared.brain, slices=z))
    for metric, value in scores.items():
        if isinstance(value, Reason) and not isinstance(value, NoErrorError):
            raise InputError(f"subject {evaluated.subject.name}, {metric} of {name}: {value}")
    columns = {"missing": evaluated.pattern_name(missing), "modality": name, "slices": len(z)}
    return columns | {m: None if isinstance(v, Reason) else v for m, v in scores.items()}


def absolute_error(evaluated: EvaluatedSubject, z: Array, channel: int, images: Array) -> float:
    """The mean absolute error of predictions [S, H, W, M] over the brain's voxels, in grey
    levels: the CRPS of a prediction that is not a draw."""
    brain = evaluated.brain(z)
    error = (images - evaluated.truth(z))[..., channel][brain]
    return float(np.mean(np.abs(error), dtype=np.float64) * evaluated.grey[channel])


def grey_images(evaluated: EvaluatedSubject, z: Array, images: Array) -> Array:
    """[M, S, H, W] grey levels of predictions [Q, S, H, W, M]: of each modality, those of
    the pattern in which it alone is scored.

    On the network's grid: the frames of subjects may differ in size. 0 where the subject
    has no such pattern.
    """
    shown = np.zeros((len(evaluated.modalities), *images.shape[1:4]), np.float32)
    brain = evaluated.brain(z)
    for pattern in np.flatnonzero(evaluated.scored.sum(axis=1) == 1):
        channel = int(np.argmax(evaluated.scored[pattern]))
        image = np.nan_to_num(images[pattern, ..., channel])
        shown[channel] = image * brain * float(evaluated.grey[channel])
    return np.clip(shown, 0, TABLE1.peak).astype(np.float32)


def true_grey_images(evaluated: EvaluatedSubject, z: Array) -> Array:
    """[M, S, H, W] grey levels of the truth, where `grey_images` has a prediction."""
    truth = evaluated.truth(z)
    shape = (len(evaluated.missing), *truth.shape)
    return grey_images(evaluated, z, np.broadcast_to(truth, shape))
