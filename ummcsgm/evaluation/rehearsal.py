"""What evaluation fits on validation subjects, before any test subject is asked."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence

from ummcsgm.data.layouts.naming import Subject
from ummcsgm.distributed import devices
from ummcsgm.evaluation import slabs
from ummcsgm.evaluation.ensemble import SAMPLER, fit_factors
from ummcsgm.evaluation.exam import Exam, rehearse
from ummcsgm.evaluation.marks import Marks, by_name, digest_of, kept
from ummcsgm.inference.predictor import CALIBRATION, DRAW_KEYS, TrainedModel
from ummcsgm.utils.atomic_io import write_atomic

# What of the scoring decides what is drawn, and how it was measured.
DRAWN = (*DRAW_KEYS, "draws", "draw_slices", "seed")


def calibrated(
    workdir: pathlib.Path,
    exam: Exam,
    subjects: Sequence[Subject],
    trained: TrainedModel,
    drawing: Callable[[float], Callable],
) -> Exam:
    """The exam with what is fitted on validation subjects, told in calibration.json;
    as it is where there is none that can be asked.

    Fitted are the factors on the spread of draws, and the rho of their noise along z;
    drawing(rho) draws with such a noise.
    """
    folder = workdir / "evaluation" / "parts" / "validation"

    def one(place: int) -> Marks:
        subject = subjects[place]
        ask = functools.partial(rehearse, exam, subject)
        marks = kept(folder / f"{subject.name}.npz", [exam.key], subject, ask)
        print(f"calibrated on {subject.name}", flush=True)
        return marks

    every = devices.map_across_processes(one, len(subjects))
    fitted = fit_factors([record for marks in every for record in marks.records])
    if not fitted:  # what an earlier evaluation fitted is of other subjects
        if devices.is_main():
            (workdir / CALIBRATION).unlink(missing_ok=True)
        return exam

    def measured(rho: float) -> list[dict]:
        answers = {rho: drawing(rho)}
        some = subjects[: exam.scoring.slab_subjects or None]
        marks = examine_slabs(folder / f"slabs_{rho:g}", exam, some, answers)
        return [record for one in marks.values() for record in one.records]

    coherence = slabs.fit(measured)
    told = _told(exam, trained, fitted) | {
        "subjects": [subject.name for subject in subjects],
        "rho": coherence.get("rho", 0.0),
        "coherence": coherence,
    }
    if devices.is_main():
        write_atomic(workdir / CALIBRATION, json.dumps(told, indent=1))
    key = digest_of(exam.key, fitted, coherence)
    return dataclasses.replace(exam, factors=fitted, coherence=coherence, key=key)


def _told(exam: Exam, trained: TrainedModel, fitted: dict) -> dict:
    """What calibration.json tells of the factors, and of how they were found."""
    scoring = dataclasses.asdict(exam.scoring)
    return {
        "step": trained.step,
        "parameters_sha256": trained.digest,
        "sampler": SAMPLER,
        **{name: scoring[name] for name in DRAWN},
        "factors": {modality: own["factor"] for modality, own in fitted.items()},
        "fits": fitted,
    }


def examine_slabs(
    folder: pathlib.Path, exam: Exam, subjects: Sequence[Subject], answers: dict[float, Callable]
) -> dict[str, Marks]:
    """By subject, the marks of its slab with each of the `answers`, by rho."""
    rhos = " and ".join(f"{rho:g}" for rho in answers)

    def one(place: int) -> Marks:
        subject = subjects[place]
        ask = functools.partial(slabs.examine_slab, exam, subject, answers)
        path, key = folder / f"{subject.name}.npz", [exam.key, list(answers)]
        marks = kept(path, key, subject, ask)
        count = f"{place + 1}/{len(subjects)}"
        print(f"slab {count}, rho {rhos}: {subject.name}", flush=True)
        return marks

    return by_name(subjects, devices.map_across_processes(one, len(subjects)))
