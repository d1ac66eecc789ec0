"""What one test subject is asked, and how its answers are scored."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ummcsgm.answer import slice_addresses
from ummcsgm.baselines.ridge import Moments, ridge
from ummcsgm.data.layouts import Subject
from ummcsgm.data.subjects import Prepared, network_slices, prepare_subject
from ummcsgm.data.window import cut, paste
from ummcsgm.metrics import TABLE1, grey_scale, score, scored_slices
from ummcsgm.plans import Scoring, Space
from ummcsgm.types import Array, InputError

METHODS = ("ridge", "ridge2", "mean", "algorithm1")


@dataclasses.dataclass(frozen=True)
class Exam:
    """What every test subject is asked, and who answers."""

    space: Space
    scoring: Scoring
    questions: Array  # [Q, M] bool
    moments: Moments
    answers: dict[str, Callable]  # by sampler; each compiled once
    key: str  # changes when any of this does

    @property
    def modalities(self) -> tuple[str, ...]:
        """The complete space, in the order of channels."""
        return self.space.modalities


def examine(
    exam: Exam, subject: Subject, drawn: bool, shown: bool
) -> tuple[list[dict], dict[str, Array]]:
    """One subject's rows, and its panels if it is to be shown.

    A row has subject, group, method, missing, modality, slices and the metrics.
    `mean_same_slices` is `mean` on the slices that Algorithm 1 answered for.
    """
    prepared = prepare_subject(subject, exam.modalities, exam.space.grid)
    try:
        z = scored_slices(prepared.brain, TABLE1)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    few = _spread(z, exam.scoring.algorithm1_slices) if drawn else z[:0]
    estimates = {
        "ridge": (z, _floor(exam, prepared, z, 1)),
        "ridge2": (z, _floor(exam, prepared, z, 2)),
        "mean": (z, _network(exam, subject, prepared, z, "mean")),
    }
    if drawn:
        same = estimates["mean"][1][:, np.isin(z, few)]
        draw = _network(exam, subject, prepared, few, "euler_maruyama")
        estimates |= {"mean_same_slices": (few, same), "algorithm1": (few, draw)}
    rows = [
        {"subject": subject.name, "group": subject.group, "method": method}
        | _score(exam, prepared, slices, exam.questions[q], channel, images[q])
        for method, (slices, images) in estimates.items()
        for q, channel in np.argwhere(exam.questions)
    ]
    shown_z = _spread(few if drawn else z, 1)[0]
    return rows, _panels(exam, prepared, estimates, shown_z) if shown else {}


def _spread(z: Array, count: int) -> Array:
    """`count` of `z`, evenly spread and away from the ends; all of them for 0."""
    if not 0 < count < len(z):
        return z
    return z[((np.arange(count) + 0.5) * len(z) / count).astype(int)]


def _floor(exam: Exam, prepared: Prepared, z: Array, degree: int) -> Array:
    """The ridge answers to all questions, [Q, S, H, W, M]."""
    images = network_slices(prepared, exam.modalities, z)
    penalty = exam.scoring.penalty
    return np.stack(
        [
            ridge(exam.moments, tuple(missing), degree, penalty).predict(images)
            for missing in exam.questions.tolist()
        ]
    )


def _network(
    exam: Exam, subject: Subject, prepared: Prepared, z: Array, sampler: str
) -> Array:
    """The network's answers to all questions, [Q, S, H, W, M]."""
    images = network_slices(prepared, exam.modalities, z)
    asked = len(exam.questions)
    addresses = slice_addresses(subject.name, z, draw=0)
    rows = exam.answers[sampler](
        np.tile(images, (asked, 1, 1, 1)),
        np.repeat(exam.questions, len(z), axis=0),
        np.tile(addresses, (asked, 1)),
    )
    return rows.reshape(asked, *images.shape)


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
    estimate = paste(prepared.window, images[..., channel]) * prepared.scales[name]
    truth = prepared.case.volumes[name]
    asked = "+".join(np.array(exam.modalities)[missing])
    facts = {"missing": asked, "modality": name, "slices": len(z)}
    return facts | score(truth, estimate, prepared.brain, z, TABLE1)


def _panels(
    exam: Exam, prepared: Prepared, estimates: dict, z: int
) -> dict[str, Array]:
    """Truth and every method's answer with one missing, in grey levels.

    [M, H, W] on the network's grid: subjects' own frames may differ in size.
    """
    panels = {name: [] for name in ("truth", *METHODS) if name in {"truth", *estimates}}
    for question, missing in enumerate(exam.questions):
        if missing.sum() != 1:
            continue
        channel = int(np.argmax(missing))
        volume = prepared.case.volumes[exam.modalities[channel]]
        grey = grey_scale(volume, prepared.brain, TABLE1)
        panels["truth"].append(cut(prepared.window, volume[z]) * grey)
        for method in panels.keys() - {"truth"}:
            slices, images = estimates[method]
            image = images[question, np.flatnonzero(slices == z)[0], ..., channel]
            image = image * cut(prepared.window, prepared.brain[z])
            scale = prepared.scales[exam.modalities[channel]]
            panels[method].append(image * scale * grey)
    return {k: np.clip(v, 0, TABLE1.peak).astype(np.float32) for k, v in panels.items()}
