"""What one test subject is asked, and how its answers are scored."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ummcsgm.answer import slice_addresses
from ummcsgm.baselines.ridge import Moments, moments_having, ridge
from ummcsgm.data.layouts import Subject
from ummcsgm.data.subjects import (
    Prepared,
    network_brain,
    network_slices,
    prepare_subject,
)
from ummcsgm.data.window import paste
from ummcsgm.metrics import TABLE1, grey_scale, score, scored_slices
from ummcsgm.plans import Scoring, Space
from ummcsgm.types import Array, InputError

FLOORS = ("ridge", "ridge2")
METHODS = (*FLOORS, "mean", "algorithm1")


@dataclasses.dataclass(frozen=True)
class Exam:
    """What every test subject is asked, and who answers."""

    space: Space
    scoring: Scoring
    questions: Array  # [Q, M] bool
    moments: dict[tuple[bool, ...], Moments]  # by what was scanned
    answers: dict[str, Callable]  # by sampler; each compiled once
    key: str  # changes when any of this does

    @property
    def modalities(self) -> tuple[str, ...]:
        """The complete space, in the order of channels."""
        return self.space.modalities


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


def examine(
    exam: Exam, subject: Subject, drawn: bool, shown: bool
) -> tuple[list[dict], dict[str, Array]]:
    """One subject's rows, and its panels if it is to be shown.

    A row has subject, group, method, missing, modality, slices and the metrics.
    `mean_same_slices` is `mean` on the slices that Algorithm 1 answered for. A floor
    has no row where no training subject was scanned with all that it needs.
    """
    prepared = prepare_subject(subject, exam.modalities, exam.space.view)
    present = np.array([name in prepared.scales for name in exam.modalities])
    asked = asked_of(exam.questions, present)
    try:
        z = scored_slices(prepared.brain, TABLE1)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    few = _spread(z, exam.scoring.algorithm1_slices) if drawn else z[:0]
    estimates = {
        "ridge": (z, _floor(exam, asked, prepared, z, 1)),
        "ridge2": (z, _floor(exam, asked, prepared, z, 2)),
        "mean": (z, _network(exam, asked, subject, prepared, z, "mean")),
    }
    if drawn:
        same = estimates["mean"][1][:, np.isin(z, few)]
        draw = _network(exam, asked, subject, prepared, few, "euler_maruyama")
        estimates |= {"mean_same_slices": (few, same), "algorithm1": (few, draw)}
    rows = [
        {"subject": subject.name, "group": subject.group, "method": method}
        | _score(exam, prepared, slices, asked.missing[q], channel, images[q])
        for method, (slices, images) in estimates.items()
        for q, channel in np.argwhere(asked.scored)
        if method not in FLOORS or np.isfinite(images[q, ..., channel]).all()
    ]
    shown_z = _spread(few if drawn else z, 1)[0]
    panels = _panels(exam, asked, prepared, estimates, shown_z) if shown else {}
    return rows, panels


def _spread(z: Array, count: int) -> Array:
    """`count` of `z`, evenly spread and away from the ends; all of them for 0."""
    if not 0 < count < len(z):
        return z
    return z[((np.arange(count) + 0.5) * len(z) / count).astype(int)]


def _floor(
    exam: Exam, asked: Asked, prepared: Prepared, z: Array, degree: int
) -> Array:
    """The ridge answers to what is scored, [Q, S, H, W, M]; NaN where there is none."""
    images = network_slices(prepared, exam.modalities, z)
    answers = np.full((len(asked.missing), *images.shape), np.nan, np.float32)
    for q, channel in np.argwhere(asked.scored):
        missing = asked.missing[q]
        needed = ~missing | (np.arange(len(missing)) == channel)
        moments = moments_having(exam.moments, tuple(needed.tolist()))
        if moments is not None:
            question = tuple(missing.tolist())
            fitted = ridge(moments, question, degree, exam.scoring.penalty)
            answers[q, ..., channel] = fitted.predict(images)[..., channel]
    return answers


def _network(
    exam: Exam,
    asked: Asked,
    subject: Subject,
    prepared: Prepared,
    z: Array,
    sampler: str,
) -> Array:
    """The network's answers to all questions, [Q, S, H, W, M]."""
    images = network_slices(prepared, exam.modalities, z)
    questions = len(asked.missing)
    addresses = slice_addresses(subject.name, z, draw=0)
    if not questions:
        return images[None][:0]
    rows = exam.answers[sampler](
        np.tile(images, (questions, 1, 1, 1)),
        np.repeat(asked.missing, len(z), axis=0),
        np.tile(addresses, (questions, 1)),
    )
    return rows.reshape(questions, *images.shape)


def _score(
    exam: Exam,
    prepared: Prepared,
    z: Array,
    missing: Array,
    channel: int,
    images: Array,
) -> dict:
    """The scores of modality `channel` in answers [S, H, W, M] to one question."""
    name = exam.modalities[channel]
    slices = images[..., channel] * network_brain(prepared, z)
    estimate = paste(prepared.window, slices) * prepared.scales[name]
    truth = prepared.case.volumes[name]
    asked = "+".join(np.array(exam.modalities)[missing])
    facts = {"missing": asked, "modality": name, "slices": len(z)}
    return facts | score(truth, estimate, prepared.brain, z, TABLE1)


def _panels(
    exam: Exam, asked: Asked, prepared: Prepared, estimates: dict, z: int
) -> dict[str, Array]:
    """Truth and every method's answer with one left out, in grey levels.

    [M, H, W] on the network's grid: subjects' own frames may differ in size. All 0
    where the subject was not scanned or cannot be asked.
    """
    names = [name for name in ("truth", *METHODS) if name in {"truth", *estimates}]
    panels = np.zeros((len(names), len(exam.modalities), *exam.space.grid))
    for question in np.flatnonzero(asked.scored.sum(axis=1) == 1):
        channel = int(np.argmax(asked.scored[question]))
        modality = exam.modalities[channel]
        volume = prepared.case.volumes[modality]
        grey = grey_scale(volume, prepared.brain, TABLE1)
        scale = prepared.scales[modality] * grey
        brain = network_brain(prepared, np.array([z]))[0]
        truth = network_slices(prepared, exam.modalities, np.array([z]))
        panels[0, channel] = truth[0, ..., channel] * scale
        for place, method in enumerate(names[1:], 1):
            slices, images = estimates[method]
            image = images[question, np.flatnonzero(slices == z)[0], ..., channel]
            panels[place, channel] = np.nan_to_num(image) * brain * scale
    clipped = np.clip(panels, 0, TABLE1.peak).astype(np.float32)
    return dict(zip(names, clipped, strict=True))
