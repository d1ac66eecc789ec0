"""The test subjects asked of one method that is not the mm-CSN, and its marks."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.crop import ImageSpace
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.distributed import devices
from ummcsgm.evaluation.ensemble import SAMPLER
from ummcsgm.evaluation.exam import draw_once
from ummcsgm.evaluation.marks import Marks, by_name, digest_of, kept
from ummcsgm.evaluation.protocols import TABLE1, profile_hash
from ummcsgm.evaluation.sitting import (
    absolute_error,
    answers_of,
    grade,
    grey_images,
    sit,
    spread,
    true_images,
)
from ummcsgm.inference.predictor import TrainedModel, make_mean_predictor, make_sampler
from ummcsgm.study.rivals import Rival
from ummcsgm.types import Array

SHOWN = 2  # subjects in the report


@dataclasses.dataclass(frozen=True)
class Contest:
    """What every method is asked: questions [Q, M] of each of `subjects`; of the first
    SHOWN, `gallery` slices are kept to be looked at."""

    space: ImageSpace
    scoring: EvaluationOptions
    questions: Array
    subjects: Sequence[Subject]
    gallery: int


def enter(folder: pathlib.Path, contest: Contest, rival: Rival) -> dict[str, Marks]:
    """By subject, the marks of a method; kept in `folder`, and found there again.

    `crps` is that of `exam.examine`. `panels` has the shown subjects' answers with one
    modality missing, `answers` [M, S, H, W] uint8 grey levels, and their `z` [S].
    """
    scoring = dataclasses.asdict(contest.scoring)
    questions = contest.questions.tolist()
    view = dataclasses.asdict(contest.space.view)
    asked = (scoring, questions, view, contest.gallery, profile_hash(TABLE1))
    key = digest_of(rival.name, rival.digest, *asked)

    def one(place: int) -> Marks:
        subject = contest.subjects[place]
        ask = functools.partial(_examine, contest, rival, subject, place)
        own = [key, _measured(contest, place), place < SHOWN]
        marks = kept(folder / f"{subject.name}.npz", own, subject, ask)
        count = f"{place + 1}/{len(contest.subjects)}"
        print(f"{rival.title}: {count}, {subject.name}", flush=True)
        return marks

    every = devices.map_across_processes(one, len(contest.subjects))
    return by_name(contest.subjects, every)


def _measured(contest: Contest, place: int) -> bool:
    """Whether the mm-CSN's draws are measured on this subject, and so this method."""
    return place < (contest.scoring.draw_subjects or len(contest.subjects))


def _examine(contest: Contest, rival: Rival, subject: Subject, place: int) -> Marks:
    sitting = sit(subject, contest.space, contest.questions)
    if not len(sitting.asked.missing):
        return Marks([], [], {}, {})
    z = sitting.z
    images = answers_of(sitting, z, rival.answer)
    drawn = spread(z, contest.scoring.draw_slices)
    there, measured = np.isin(z, drawn), _measured(contest, place)
    rows = []
    for q, channel in np.argwhere(sitting.asked.scored):
        scores = grade(sitting, z, sitting.asked.missing[q], channel, images[q])
        crps = None
        if measured:
            crps = absolute_error(sitting, drawn, channel, images[q, there])
        rows.append(sitting.names | {"method": rival.name} | scores | {"crps": crps})
    panels = {}
    if place < SHOWN:
        shown = spread(z, contest.gallery)
        own = grey_images(sitting, shown, images[:, np.isin(z, shown)])
        panels = {"answers": _bytes(own), "z": shown}
    return Marks(rows, [], panels, {})


def exhibit(
    folder: pathlib.Path, contest: Contest, trained: TrainedModel
) -> dict[str, dict[str, Array]]:
    """By shown subject, what the page has of it beside `enter`'s: the slices `z`, and
    [M, S, H, W] uint8 of the `truth`, the mm-CSN's mean `mm-csn`, a draw `warm`, and
    `sd`, what it predicts of its mean's error, if it does."""
    told = make_mean_predictor(trained, contest.scoring)
    drawn = make_sampler(trained, SAMPLER, contest.scoring)
    scoring, questions = contest.scoring, contest.questions.tolist()
    view = dataclasses.asdict(contest.space.view)
    asked = (dataclasses.asdict(scoring), questions, view, profile_hash(TABLE1))
    key = digest_of(trained.digest, *asked)

    def one(place: int) -> Marks:
        subject = contest.subjects[place]
        own = [key, contest.gallery]
        ask = functools.partial(_show, contest, subject, told, drawn)
        return kept(folder / f"{subject.name}.npz", own, subject, ask)

    shown = contest.subjects[:SHOWN]
    marks = by_name(shown, devices.map_across_processes(one, len(shown)))
    return {name: own.panels for name, own in marks.items() if own.panels}


def _show(contest: Contest, subject: Subject, told: Callable, drawn: Callable) -> Marks:
    sitting = sit(subject, contest.space, contest.questions)
    if not len(sitting.asked.missing):
        return Marks([], [], {}, {})
    z = spread(sitting.z, contest.gallery)
    known = answers_of(sitting, z, told)
    panels = {"z": z, "truth": _bytes(true_images(sitting, z))}
    panels["mm-csn"] = _bytes(grey_images(sitting, z, known.mean))
    draw = draw_once(drawn, sitting, (z, known))
    panels["warm"] = _bytes(grey_images(sitting, z, draw))
    if known.variance is not None:
        sd = np.sqrt(known.variance)
        panels["sd"] = _bytes(grey_images(sitting, z, sd))
    return Marks([], [], panels, {})


def _bytes(images: Array) -> Array:
    return np.round(images).astype(np.uint8)
