"""The scores of one subject's predictions under every profile.

It does not import JAX, so that the processes that share the subjects start at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import Geometry, check_same_grid, read_segmentation, read_volume
from ummcsgm.data.subjects import read_with_brain
from ummcsgm.evaluation.protocols import PROFILES, Reason, ScoredVolume, profile_hash, score
from ummcsgm.types import Array, InputError


@dataclass(frozen=True)
class Prediction:
    """A file that predicts `modality` of `subject`.

    `kind` is the suffix of its name: mean, draw-03; "" if there is none.
    """

    path: Path
    subject: str
    modality: str
    kind: str


@dataclass
class Scores:
    """The scores of some predictions.

    `rows` have score_folder.COLUMNS; `skipped` have them with `reason` for `value`.
    `failures` has a sentence for each prediction that could not be scored, `copies` the
    paths of those that are the scan itself.
    """

    rows: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    def add(self, other: Scores) -> None:
        """Appends the scores of other predictions."""
        self.rows += other.rows
        self.skipped += other.skipped
        self.failures += other.failures
        self.copies += other.copies


def score_subject(masked: bool, job: tuple[Subject, tuple[Prediction, ...]]) -> Scores:
    """The scores of a subject's predictions.

    The brain is where any of the subject's scans is not 0 or, if `masked`, its mask.
    """
    (subject, predictions), scores = job, Scores()
    try:
        volumes, grid, brain, tumour = read_truth(subject, masked)
    except InputError as error:
        scores.failures.append(f"subject {subject.name} is not scored: {error}")
        return scores
    for prediction in predictions:
        try:
            estimate, geometry = read_volume(prediction.path)
            check_same_grid(grid, geometry)
        except InputError as error:
            scores.failures.append(f"not scored: {error}")
            continue
        truth = volumes[prediction.modality]
        if np.array_equal(truth, estimate):
            scores.copies.append(str(prediction.path))
        else:
            _add_scores(scores, prediction, ScoredVolume(truth, estimate, brain, tumour))
    return scores


def read_truth(
    subject: Subject, masked: bool
) -> tuple[dict[str, Array], Geometry, Array, Array | None]:
    """The subject's scans, their grid, its brain, and its tumour if it is segmented.

    Raises:
        InputError: a file cannot be read or is on another grid, or the mask is missing.
    """
    volumes, grid, brain = read_with_brain(subject, subject.files, masked)
    if subject.segmentation is None:
        return volumes, grid, brain, None
    labels, geometry = read_segmentation(subject.segmentation)
    check_same_grid(grid, geometry)
    tumour = labels > 0
    if subject.cavity_value is not None:
        tumour &= labels != subject.cavity_value
    return volumes, grid, brain, tumour


def _add_scores(scores: Scores, prediction: Prediction, volume: ScoredVolume) -> None:
    for profile in PROFILES:
        labels = {
            "subject": prediction.subject,
            "modality": prediction.modality,
            "kind": prediction.kind,
            "profile": profile.name,
            "profile_hash": profile_hash(profile),
        }
        for metric, value in score(profile, volume).items():
            if isinstance(value, Reason):
                scores.skipped.append(labels | {"metric": metric, "reason": str(value)})
            else:
                scores.rows.append(labels | {"metric": metric, "value": value})
