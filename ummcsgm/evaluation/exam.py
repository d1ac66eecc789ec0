"""What one test subject is asked of the mm-CSN and the floors, and its marks."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ummcsgm.baselines.ridge import NormalEquations, select_normal_equations, solve_ridge
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.crop import ImageSpace
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.evaluation import ensemble
from ummcsgm.evaluation.marks import Marks
from ummcsgm.evaluation.sitting import (
    Sitting,
    absolute_error,
    answers_of,
    first_draws,
    grade,
    grey_images,
    sit,
    spread,
    true_images,
)
from ummcsgm.types import Array, Estimate

FLOORS = ("ridge", "ridge2")
METHODS = (*FLOORS, "mean", "algorithm1", ensemble.SAMPLER)
SHOWN = 3  # draws of a picture


@dataclasses.dataclass(frozen=True)
class Exam:
    """What every test subject is asked, and who answers."""

    space: ImageSpace
    scoring: EvaluationOptions
    questions: Array  # [Q, M] bool
    moments: dict[tuple[bool, ...], NormalEquations]  # by what was scanned
    mean: Callable  # mean(images, missing), compiled once
    samplers: dict[str, Callable]  # sample(images, missing, addresses, estimate) by name
    factors: dict[str, dict]  # that respread draws, by modality: `fit_factors`
    coherence: dict  # of draws along z, and the rho of their noise: `slabs.fit`
    key: str  # changes when any of this does

    @property
    def modalities(self) -> tuple[str, ...]:
        """The complete space, in the order of channels."""
        return self.space.modalities


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
    scanned with all that it needs. `crps` is of the brain's voxels on the slices of the
    K draws, in grey levels; None where there are none, or for single draws.
    """
    sitting = sit(subject, exam.space, exam.questions)
    z = sitting.z
    few = spread(z, exam.scoring.algorithm1_slices) if share.drawn else z[:0]
    told = _mean(exam, sitting, z)
    estimates = {
        "ridge": (z, _floor(exam, sitting, z, 1)),
        "ridge2": (z, _floor(exam, sitting, z, 2)),
        "mean": (z, told.mean),
    }
    certain = dict(estimates) if share.measured else {}
    if share.drawn:
        draw = told.mean[:0]
        if len(sitting.asked.missing):
            draw = first_draws(sitting, few, exam.samplers["euler_maruyama"])
        same = told.mean[:, np.isin(z, few)]
        estimates |= {"mean_same_slices": (few, same), "algorithm1": (few, draw)}
    records, pictures = [], {}
    if share.measured:
        own, records, pictures = _measure(exam, sitting, (z, told))
        estimates |= own
    crps = _crps(exam, sitting, certain, records)
    rows = [
        sitting.names
        | {"method": method}
        | grade(sitting, slices, sitting.asked.missing[q], channel, images[q])
        | {"crps": crps.get((method, q, channel))}
        for method, (slices, images) in estimates.items()
        for q, channel in np.argwhere(sitting.asked.scored)
        if method not in FLOORS or np.isfinite(images[q, ..., channel]).all()
    ]
    if not share.shown:
        return Marks(rows, records, {}, {})
    shown = spread(few if share.drawn else z, 1)[:1]
    if share.measured:
        at = (shown, told.map(lambda own: own[:, z == shown]))
        estimates[ensemble.SAMPLER] = shown, _draw(exam, sitting, at)
    return Marks(rows, records, _panels(sitting, estimates, shown), pictures)


def rehearse(exam: Exam, subject: Subject) -> Marks:
    """The records alone, of a subject on which the factors are fitted."""
    sitting = sit(subject, exam.space, exam.questions)
    z = spread(sitting.z, exam.scoring.draw_slices)
    told = _mean(exam, sitting, z)
    _, records, _ = _measure(exam, sitting, (z, told))
    return Marks([], records, {}, {})


def draw_once(sample: Callable, sitting: Sitting, told: tuple) -> Array:
    """One draw of each question, [Q, S, H, W, M], about (z, what the network told)."""
    slices = _slices(sitting, told[0])
    images = told[1].mean.copy()
    for q, missing in enumerate(sitting.asked.missing):
        images[q] = ensemble.draw(sample, slices, missing, told[1].select_row(q), 1)[0]
    return images


def _draw(exam: Exam, sitting: Sitting, told: tuple[Array, Estimate]) -> Array:
    return draw_once(exam.samplers[ensemble.SAMPLER], sitting, told)


def _slices(sitting: Sitting, z: Array) -> ensemble.Slices:
    name, own = sitting.subject.name, sitting.prepared
    return ensemble.slices_of(name, own, sitting.modalities, z)


def _crps(exam: Exam, sitting: Sitting, certain: dict, records: list[dict]) -> dict[tuple, float]:
    """By (method, question, channel): of what is no draw, and of the K draws."""
    z = spread(sitting.z, exam.scoring.draw_slices)
    there = np.isin(sitting.z, z)
    found = {
        (method, q, channel): absolute_error(sitting, z, channel, images[q, there])
        for method, (_, images) in certain.items()
        for q, channel in np.argwhere(sitting.asked.scored)
    }
    drawn = {(record["missing"], record["modality"]): record for record in records}
    for q, channel in np.argwhere(sitting.asked.scored):
        asked = sitting.named(sitting.asked.missing[q]), sitting.modalities[channel]
        if asked in drawn:
            found[ensemble.SAMPLER, q, channel] = drawn[asked]["raw"]["crps"]
    return found


def _measure(
    exam: Exam, sitting: Sitting, told: tuple[Array, Estimate]
) -> tuple[dict, list[dict], dict[str, Array]]:
    """Estimates of K draws by method, their records, and the pictures of a slice.

    `told` is (z, what the network told) of the slices among which some are chosen.
    """
    z = spread(told[0], exam.scoring.draw_slices)
    known = told[1].map(lambda own: own[:, np.isin(told[0], z)])
    slices, asked = _slices(sitting, z), sitting.asked
    factors = {exam.modalities.index(name): fit["factor"] for name, fit in exam.factors.items()}
    first, average, records, tiles = known.mean.copy(), known.mean.copy(), [], {}
    facts = sitting.names | {"slices": len(z)}
    facts |= {"method": ensemble.SAMPLER, "draws": exam.scoring.draws}
    for q, missing in enumerate(asked.missing):
        sample, count = exam.samplers[ensemble.SAMPLER], exam.scoring.draws
        draws = ensemble.draw(sample, slices, missing, known.select_row(q), count)
        first[q], average[q] = draws[0], np.mean(draws, axis=0)
        question = asked.scored[q], known.select_row(q), draws, factors, exam.scoring.seed
        judged = ensemble.judge(slices, *question)
        names = {"missing": sitting.named(missing)}
        for channel, numbers in judged.items():
            modality = {"modality": exam.modalities[channel]}
            records.append(facts | names | modality | numbers)
            if len(judged) == 1:
                tiles[channel] = ensemble.picture(slices, channel, draws, SHOWN)
    estimates = {
        "mean_of_draw_slices": (z, known.mean),
        "warm": (z, first),
        "warm_mean": (z, average),
    }
    return estimates, records, ensemble.stacked(tiles, len(exam.modalities))


def _floor(exam: Exam, sitting: Sitting, z: Array, degree: int) -> Array:
    """The ridge answers to what is scored, [Q, S, H, W, M]; NaN where there is none."""
    images, asked = sitting.slices(z), sitting.asked
    answers = np.full((len(asked.missing), *images.shape), np.nan, np.float32)
    for q, channel in np.argwhere(asked.scored):
        missing = asked.missing[q]
        needed = ~missing | (np.arange(len(missing)) == channel)
        moments = select_normal_equations(exam.moments, tuple(needed.tolist()))
        if moments is not None:
            question = tuple(missing.tolist())
            fitted = solve_ridge(moments, question, degree, exam.scoring.ridge_penalty)
            answers[q, ..., channel] = fitted.predict(images)[..., channel]
    return answers


def _mean(exam: Exam, sitting: Sitting, z: Array) -> Estimate:
    """The network's mean for all questions, [Q, S, H, W, M]."""
    if len(sitting.asked.missing):
        return answers_of(sitting, z, exam.mean)
    return Estimate(sitting.slices(z)[None][:0], None)


def _panels(sitting: Sitting, estimates: dict[str, tuple], z: Array) -> dict[str, Array]:
    """Truth and every method's answer with one left out, [M, H, W] in grey levels."""
    panels = {"truth": true_images(sitting, z)[:, 0]}
    for method in METHODS:
        if method in estimates:
            slices, images = estimates[method]
            own = images[:, np.flatnonzero(slices == z)[:1]]
            panels[method] = grey_images(sitting, z, own)[:, 0]
    return panels
