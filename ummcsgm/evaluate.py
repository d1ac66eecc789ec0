"""Checkpoint + split -> rows of numbers, and the slices of a figure.

Each subject's numbers are kept in the workdir as soon as they are there, under a key of
what they depend on: an evaluation that was stopped continues where it was.
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Callable

import numpy as np

from ummcsgm import build, build_data
from ummcsgm.answer import Trained, load_trained, make_answer
from ummcsgm.baselines.ridge import fit_moments
from ummcsgm.completion import configurations
from ummcsgm.data.cohort import Cohort
from ummcsgm.data.layouts import Subject
from ummcsgm.data.store import Store
from ummcsgm.ensembles import SAMPLER, fit_factors, summaries
from ummcsgm.exam import METHODS, Exam, Marks, Share, examine, rehearse
from ummcsgm.files import write_whole
from ummcsgm.metrics import TABLE1
from ummcsgm.plans import Scoring
from ummcsgm.preparation import prepare
from ummcsgm.types import Array, Config, InputError

METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")
SAMPLERS = ("mean", "euler_maruyama", SAMPLER)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured.

    `rows` are dicts of method, missing, modality, profile, metric, mean, sd, subjects;
    `subjects` are dicts, one a subject, method and predicted modality; `facts` say what
    was scored. `records` are those of `ensembles.judge`, one a subject and predicted
    modality. `panels` has, for up to two subjects, truth and estimates [M, H, W] in
    grey levels, by method, and `pictures` what is known of their uncertainty.
    """

    rows: list[dict]
    subjects: list[dict]
    records: list[dict]
    facts: dict
    modalities: tuple[str, ...]
    panels: dict[str, dict[str, Array]]
    pictures: dict[str, dict[str, Array]]


def evaluate(
    workdir: pathlib.Path, config: Config | None, all_configurations: bool
) -> Evaluation:
    """The newest checkpoint of `workdir` scored on the split's test subjects.

    Where the data lies and how much is asked is told by `config`, if it is given, else
    by the config in the checkpoint.

    Under profile `umm-csgm-table1`; every question with one of a subject's modalities
    left out, or every configuration that leaves something seen. What a subject was
    never scanned with is missing too, and has no truth to be scored. `mean` and the
    floors answer for all scored slices; Algorithm 1, and the draws that measure the
    posterior, for config.evaluate's shares of subjects and slices. The spread of the
    draws is recalibrated by factors fitted on validation subjects alone, if there are
    any: workdir/calibration.json tells them.

    Raises:
        InputError: there is no checkpoint or no test subject.
    """
    trained = load_trained(workdir)
    config = build_data.fitting(config, trained.config, workdir)
    scoring = build.build_scoring(config)
    cohort, stores = prepare(config, workdir)
    names = _interleaved(cohort, "test")
    if not names:
        raise InputError(
            f"{workdir / 'split.json'} has no test subject to evaluate on: use more "
            "subjects, or --mode train."
        )
    table = configurations(len(trained.space.modalities), proper=True)
    single = table[table.sum(axis=1) == 1]
    exam = _set_exam(trained, scoring, single, stores["train"])
    exam = _calibrated(workdir, exam, cohort, trained)
    exam = _asking(exam, table if all_configurations else single)
    parts = workdir / "evaluation" / "parts"
    drawn = scoring.algorithm1_subjects or len(names)
    measured = scoring.draw_subjects or len(names)
    marks = []
    for place, name in enumerate(names):
        share = Share(place < drawn, place < measured, place < 2)
        subject = cohort.subjects[name]
        key = [exam.key, dataclasses.astuple(share)]
        ask = functools.partial(examine, exam, subject, share)
        marks.append(_kept(parts / f"{name}.npz", key, subject, ask))
        print(f"evaluated {place + 1}/{len(names)}: {name}", flush=True)
    return _gather(exam, trained.step, names, marks)


def _set_exam(
    trained: Trained, scoring: Scoring, questions: Array, store: Store
) -> Exam:
    moments = fit_moments(
        (entry.present, store.subject_slices(entry.name)) for entry in store.subjects
    )
    answers = {name: make_answer(trained, name, scoring) for name in SAMPLERS}
    key = _digest(
        trained.digest,
        dataclasses.asdict(scoring),
        questions.tolist(),
        [[entry.name, entry.crc] for entry in store.subjects],
    )
    return Exam(trained.space, scoring, questions, moments, answers, {}, key)


def _calibrated(
    workdir: pathlib.Path, exam: Exam, cohort: Cohort, trained: Trained
) -> Exam:
    """The exam with factors fitted on validation subjects, told in calibration.json;
    as it is where there is none that can be asked."""
    names = _interleaved(cohort, "validation")
    names = names[: exam.scoring.draw_subjects or len(names)]
    records = []
    for name in names:
        subject = cohort.subjects[name]
        path = workdir / "evaluation" / "parts" / "validation" / f"{name}.npz"
        ask = functools.partial(rehearse, exam, subject)
        records += _kept(path, [exam.key], subject, ask).records
        print(f"calibrated on {name}", flush=True)
    fitted = fit_factors(records)
    if not fitted:
        return exam
    factors = {modality: own["factor"] for modality, own in fitted.items()}
    told = {
        "step": trained.step,
        "parameters_sha256": trained.digest,
        "sampler": SAMPLER,
        **{
            k: getattr(exam.scoring, k) for k in ("few", "draws", "draw_slices", "seed")
        },
        "subjects": names,
        "factors": factors,
        "fits": fitted,
    }
    write_whole(workdir / "calibration.json", json.dumps(told, indent=1))
    key = _digest(exam.key, fitted)
    return dataclasses.replace(exam, factors=fitted, key=key)


def _asking(exam: Exam, questions: Array) -> Exam:
    key = _digest(exam.key, questions.tolist())
    return dataclasses.replace(exam, questions=questions, key=key)


def _digest(*depends: object) -> str:
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def _interleaved(cohort: Cohort, split: str) -> list[str]:
    """The split's subjects, groups in turn, so that the first few hold each group."""
    groups: dict[str, list[str]] = {}
    for name in cohort.split[split]:
        groups.setdefault(cohort.subjects[name].group, []).append(name)
    queues = [groups[group] for group in sorted(groups)]
    longest = max(map(len, queues), default=0)
    return [q[i] for i in range(longest) for q in queues if i < len(q)]


def _kept(
    path: pathlib.Path, key: list, subject: Subject, ask: Callable[[], Marks]
) -> Marks:
    """The subject's marks: those at `path` if they answer the same, else what `ask`
    gives, which is then kept there."""
    times = [file.stat().st_mtime_ns for file in subject.files.values()]
    key = json.dumps([*key, subject.name, times])
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                return Marks(
                    json.loads(str(kept["rows"])),
                    json.loads(str(kept["records"])),
                    {n[6:]: kept[n] for n in kept.files if n.startswith("panel_")},
                    {n[8:]: kept[n] for n in kept.files if n.startswith("picture_")},
                )
    marks = ask()
    content = io.BytesIO()
    np.savez_compressed(
        content,
        key=key,
        rows=json.dumps(marks.rows),
        records=json.dumps(marks.records),
        **{f"panel_{name}": array for name, array in marks.panels.items()},
        **{f"picture_{name}": array for name, array in marks.pictures.items()},
    )
    write_whole(path, content.getvalue())
    return marks


def _gather(exam: Exam, step: int, names: list[str], marks: list[Marks]) -> Evaluation:
    subjects = [row for one in marks for row in one.rows]
    records = [record for one in marks for record in one.records]
    shown = dict(zip(names, marks, strict=True))
    scoring = exam.scoring
    facts = {
        "step": step,
        "profile": TABLE1.name,
        "test_subjects": len(names),
        "evaluations": scoring.steps,
        "few": scoring.few,
        "algorithm1": _same_slices(subjects, "algorithm1", "mean_same_slices"),
        SAMPLER: _same_slices(subjects, SAMPLER, "mean_of_draw_slices")
        | {"psnr_of_mean_of_draws": _by_modality(_single(subjects, "warm_mean"))},
        "calibration": {
            "draws": scoring.draws,
            "factors": {name: own["factor"] for name, own in exam.factors.items()},
            "fits": exam.factors,
            "summaries": summaries(records),
        },
        **_asked(exam, names, subjects),
    }
    rows = _summary(subjects)
    rows.sort(key=lambda row: exam.modalities.index(row["modality"]))
    panels = {name: one.panels for name, one in shown.items() if one.panels}
    pictures = {name: one.pictures for name, one in shown.items() if one.pictures}
    return Evaluation(rows, subjects, records, facts, exam.modalities, panels, pictures)


def _asked(exam: Exam, names: list[str], subjects: list[dict]) -> dict[str, int]:
    """How many of the questions could be scored: the others have no truth."""
    rows = {
        (row["subject"], row["missing"]) for row in subjects if row["method"] == "mean"
    }
    return {"questions": len(exam.questions) * len(names), "scored": len(rows)}


def _summary(subjects: list[dict]) -> list[dict]:
    """Mean and standard deviation over subjects, a row a metric."""
    groups: dict[tuple, list[dict]] = {}
    for row in subjects:
        if row["method"] in METHODS:
            asked = (row["method"], row["missing"], row["modality"])
            groups.setdefault(asked, []).append(row)
    names = ("method", "missing", "modality")
    return [
        dict(zip(names, asked, strict=True))
        | {"profile": TABLE1.name, "metric": metric}
        | _moments([row[metric] for row in rows])
        for asked, rows in groups.items()
        for metric in METRICS
    ]


def _moments(values: list[float]) -> dict:
    """Mean, standard deviation (that of a sample; nan for one subject), count."""
    with np.errstate(invalid="ignore"):  # perfect answers are infinitely good
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "sd": sd, "subjects": len(values)}


def _same_slices(subjects: list[dict], method: str, same: str) -> dict:
    """A method and the mean on the very slices that the method answered for.

    Their PSNRs by modality, averaged over subjects, with that one modality missing.
    """
    drawn = _single(subjects, method)
    slices = {row["subject"]: row["slices"] for row in drawn}
    return {
        "subjects": len(slices),
        "slices": sum(slices.values()),
        "psnr": _by_modality(drawn),
        "psnr_of_mean": _by_modality(_single(subjects, same)),
    }


def _single(subjects: list[dict], method: str) -> list[dict]:
    """The rows of a method where one modality is missing."""
    own = [row for row in subjects if row["method"] == method]
    return [row for row in own if row["missing"] == row["modality"]]


def _by_modality(rows: list[dict]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["modality"], []).append(row["psnr"])
    return {modality: float(np.mean(psnrs)) for modality, psnrs in values.items()}
