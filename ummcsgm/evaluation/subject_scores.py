"""What the predictions of one subject are worth under every profile.

No JAX is met here, so that the processes which share the subjects begin at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import Geometry, check_same_grid, read_segmentation, read_volume
from ummcsgm.data.subjects import read_with_brain
from ummcsgm.evaluation.pairs import Prediction
from ummcsgm.evaluation.protocols import PROFILES, ScoredVolume, profile_hash, score
from ummcsgm.types import Array, InputError

Job = tuple[Subject, tuple[Prediction, ...]]


@dataclass
class Outcome:
    """What the predictions of a subject are worth.

    `rows` have scoreboard.COLUMNS, `skipped` scoreboard.SKIPPED; `failures` has a
    sentence for each prediction that could not be scored, `copies` are the scans
    themselves.
    """

    rows: list[dict] = field(default_factory=list)
    skipped: list[dict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)


def score_subject(masked: bool, job: Job) -> Outcome:
    """What each prediction of a subject is worth under every profile.

    The brain is where any of the subject's scans is not 0 or, if `masked`, its mask.
    """
    (subject, predictions), outcome = job, Outcome()
    try:
        volumes, scans_geometry, brain, tumour = _read(subject, masked)
    except InputError as error:
        outcome.failures.append(f"subject {subject.name} is not scored: {error}")
        return outcome
    for prediction in predictions:
        try:
            estimate, geometry = read_volume(prediction.path)
            check_same_grid(scans_geometry, geometry)
        except InputError as error:
            outcome.failures.append(f"not scored: {error}")
            continue
        truth = volumes[prediction.modality]
        if np.array_equal(truth, estimate):
            outcome.copies.append(str(prediction.path))
        else:
            _add(outcome, prediction, ScoredVolume(truth, estimate, brain, tumour))
    return outcome


def _read(subject: Subject, masked: bool) -> tuple[dict[str, Array], Geometry, Array, Array | None]:
    """The subject's scans, their geometry, the brain, and the tumour where segmented."""
    volumes, scans_geometry, brain = read_with_brain(subject, subject.files, masked)
    tumour = None
    if subject.segmentation is not None:
        labels, geometry = read_segmentation(subject.segmentation)
        check_same_grid(scans_geometry, geometry)
        tumour = labels > 0
        if subject.cavity_value is not None:
            tumour &= labels != subject.cavity_value
    return volumes, scans_geometry, brain, tumour


def _add(outcome: Outcome, prediction: Prediction, volume: ScoredVolume) -> None:
    for profile in PROFILES:
        about = {
            "subject": prediction.subject,
            "modality": prediction.modality,
            "kind": prediction.kind,
            "profile": profile.name,
            "profile_hash": profile_hash(profile),
        }
        for metric, value in score(profile, volume).items():
            if isinstance(value, str):
                outcome.skipped.append(about | {"metric": metric, "reason": value})
            else:
                outcome.rows.append(about | {"metric": metric, "value": value})
