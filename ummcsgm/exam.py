"""What one test subject is asked, and how its answers are scored."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from ummcsgm import ensembles
from ummcsgm.answer import slice_addresses
from ummcsgm.baselines.ridge import Moments, moments_having, ridge
from ummcsgm.data.layouts import Subject
from ummcsgm.data.subjects import (
    Prepared,
    network_brain,
    network_slices,
    network_stacks,
    prepare_subject,
)
from ummcsgm.data.window import paste
from ummcsgm.marks import Marks
from ummcsgm.metrics import TABLE1, grey_scale, score, scored_slices
from ummcsgm.plans import Scoring, Space
from ummcsgm.types import Array, Estimate, InputError

FLOORS = ("ridge", "ridge2")
METHODS = (*FLOORS, "mean", "algorithm1", ensembles.SAMPLER)
SHOWN = 3  # draws of a picture


@dataclasses.dataclass(frozen=True)
class Exam:
    """What every test subject is asked, and who answers."""

    space: Space
    scoring: Scoring
    questions: Array  # [Q, M] bool
    moments: dict[tuple[bool, ...], Moments]  # by what was scanned
    answers: dict[str, Callable]  # by sampler; each compiled once
    factors: dict[str, dict]  # that respread draws, by modality: `fit_factors`
    coherence: dict  # of draws along z, and the rho of their noise: `slabs.fit`
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


@dataclasses.dataclass(frozen=True)
class Share:
    """What one subject is asked beside the mean and the floors."""

    drawn: bool  # Algorithm 1
    measured: bool  # K draws
    shown: bool


def examine(exam: Exam, subject: Subject, share: Share) -> Marks:
    """One test subject's marks.

    `mean_same_slices` is `mean` on the slices that Algorithm 1 answered for, and
    `mean_of_draw_slices` on those of the K draws; `warm` is one of these draws,
    `warm_mean` the mean of all. A floor has no row where no training subject was
    scanned with all that it needs.
    """
    prepared, asked, z = _called(exam, subject)
    few = _spread(z, exam.scoring.algorithm1_slices) if share.drawn else z[:0]
    told = _network(exam, asked, subject, prepared, z, "mean")
    mean = told.mean
    estimates = {
        "ridge": (z, _floor(exam, asked, prepared, z, 1)),
        "ridge2": (z, _floor(exam, asked, prepared, z, 2)),
        "mean": (z, mean),
    }
    if share.drawn:
        draw = _network(exam, asked, subject, prepared, few, "euler_maruyama")
        same = mean[:, np.isin(z, few)]
        estimates |= {"mean_same_slices": (few, same), "algorithm1": (few, draw)}
    records, pictures = [], {}
    if share.measured:
        own, records, pictures = _measure(exam, asked, subject, prepared, (z, told))
        estimates |= own
    rows = [
        {"subject": subject.name, "group": subject.group, "method": method}
        | _score(exam, prepared, slices, asked.missing[q], channel, images[q])
        for method, (slices, images) in estimates.items()
        for q, channel in np.argwhere(asked.scored)
        if method not in FLOORS or np.isfinite(images[q, ..., channel]).all()
    ]
    if not share.shown:
        return Marks(rows, records, {}, {})
    shown_z = _spread(few if share.drawn else z, 1)[0]
    if share.measured:
        at = (z[z == shown_z], told.each(lambda own: own[:, z == shown_z]))
        estimates[ensembles.SAMPLER] = at[0], _draw(exam, asked, subject, prepared, at)
    panels = _panels(exam, asked, prepared, estimates, shown_z)
    return Marks(rows, records, panels, pictures)


def rehearse(exam: Exam, subject: Subject) -> Marks:
    """The records alone, of a subject on which the factors are fitted."""
    prepared, asked, z = _called(exam, subject)
    z = _spread(z, exam.scoring.draw_slices)
    told = _network(exam, asked, subject, prepared, z, "mean")
    _, records, _ = _measure(exam, asked, subject, prepared, (z, told))
    return Marks([], records, {}, {})


def _called(exam: Exam, subject: Subject) -> tuple[Prepared, Asked, Array]:
    """The subject, its questions, and the slices that are scored."""
    prepared = prepare_subject(subject, exam.modalities, exam.space.view)
    present = np.array([name in prepared.scales for name in exam.modalities])
    try:
        z = scored_slices(prepared.brain, TABLE1)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    return prepared, asked_of(exam.questions, present), z


def _draw(
    exam: Exam,
    asked: Asked,
    subject: Subject,
    prepared: Prepared,
    told: tuple[Array, Estimate],
) -> Array:
    """One draw of each question, [Q, S, H, W, M], about (z, what the network told)."""
    slices = ensembles.slices_of(subject.name, prepared, exam.modalities, told[0])
    answer, images = exam.answers[ensembles.SAMPLER], told[1].mean.copy()
    for q, missing in enumerate(asked.missing):
        images[q] = ensembles.draw(answer, slices, missing, told[1].row(q), 1)[0]
    return images


def _measure(
    exam: Exam,
    asked: Asked,
    subject: Subject,
    prepared: Prepared,
    told: tuple[Array, Estimate],
) -> tuple[dict, list[dict], dict[str, Array]]:
    """Estimates of K draws by method, their records, and the pictures of a slice.

    `told` is (z, what the network told) of the slices among which some are chosen.
    """
    z = _spread(told[0], exam.scoring.draw_slices)
    known = told[1].each(lambda own: own[:, np.isin(told[0], z)])
    slices = ensembles.slices_of(subject.name, prepared, exam.modalities, z)
    factors = {
        exam.modalities.index(name): fit["factor"] for name, fit in exam.factors.items()
    }
    first, average, records, tiles = known.mean.copy(), known.mean.copy(), [], {}
    facts = {"subject": subject.name, "group": subject.group, "slices": len(z)}
    facts |= {"method": ensembles.SAMPLER, "draws": exam.scoring.draws}
    for q, missing in enumerate(asked.missing):
        answer, count = exam.answers[ensembles.SAMPLER], exam.scoring.draws
        draws = ensembles.draw(answer, slices, missing, known.row(q), count)
        first[q], average[q] = draws[0], np.mean(draws, axis=0)
        question = asked.scored[q], known.row(q), draws, factors, exam.scoring.seed
        judged = ensembles.judge(slices, *question)
        names = {"missing": _named(exam, missing)}
        for channel, numbers in judged.items():
            modality = {"modality": exam.modalities[channel]}
            records.append(facts | names | modality | numbers)
            if len(judged) == 1:
                tiles[channel] = ensembles.picture(slices, channel, draws, SHOWN)
    estimates = {
        "mean_of_draw_slices": (z, known.mean),
        "warm": (z, first),
        "warm_mean": (z, average),
    }
    return estimates, records, ensembles.stacked(tiles, len(exam.modalities))


def _named(exam: Exam, missing: Array) -> str:
    """The modalities of `missing` [M], joined by "+"."""
    return "+".join(np.array(exam.modalities)[missing])


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
) -> Array | Estimate:
    """The network's answers to all questions, [Q, S, H, W, M]."""
    images = network_stacks(prepared, exam.modalities, z)
    questions = len(asked.missing)
    addresses = slice_addresses(subject.name, z, draw=0)
    if not questions:
        nothing = images[None, ..., : len(exam.modalities)][:0]
        return Estimate(nothing, None) if sampler == "mean" else nothing
    rows = exam.answers[sampler](
        np.tile(images, (questions, 1, 1, 1)),
        np.repeat(asked.missing, len(z), axis=0),
        np.tile(addresses, (questions, 1)),
    )
    shape = (questions, len(z))
    return jax.tree.map(lambda own: own.reshape(*shape, *own.shape[1:]), rows)


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
    facts = {"missing": _named(exam, missing), "modality": name, "slices": len(z)}
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
