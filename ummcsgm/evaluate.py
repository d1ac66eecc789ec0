"""Checkpoint + split -> rows of numbers, and the slices of a figure.

Each test subject's numbers are kept in the workdir as soon as they are there, under a
key of what they depend on: an evaluation that was stopped continues where it was.
"""

import dataclasses
import hashlib
import io
import json
import pathlib

import numpy as np

from ummcsgm import build, build_data
from ummcsgm.answer import SAMPLERS, Trained, load_trained, make_answer
from ummcsgm.baselines.ridge import fit_moments
from ummcsgm.completion import configurations
from ummcsgm.data.cohort import Cohort
from ummcsgm.data.layouts import Subject
from ummcsgm.data.store import Store
from ummcsgm.exam import METHODS, Exam, examine
from ummcsgm.files import write_whole
from ummcsgm.metrics import TABLE1
from ummcsgm.plans import Scoring
from ummcsgm.preparation import prepare
from ummcsgm.types import Array, Config, InputError

METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured.

    `rows` are dicts of method, missing, modality, profile, metric, mean, sd, subjects;
    `subjects` are dicts, one a subject, method and predicted modality; `facts` say what
    was scored. `panels` has, for up to two subjects, truth and estimates [M, H, W] in
    grey levels, by method.
    """

    rows: list[dict]
    subjects: list[dict]
    facts: dict
    modalities: tuple[str, ...]
    panels: dict[str, dict[str, Array]]


def evaluate(
    workdir: pathlib.Path, config: Config | None, all_configurations: bool
) -> Evaluation:
    """The newest checkpoint of `workdir` scored on the split's test subjects.

    Where the data lies and how much is asked is told by `config`, if it is given, else
    by the config in the checkpoint.

    Under profile `umm-csgm-table1`; every question with one of a subject's modalities
    left out, or every configuration that leaves something seen. What a subject was
    never scanned with is missing too, and has no truth to be scored. `mean` and the
    floors answer for all scored slices; Algorithm 1 for config.evaluate's share of
    subjects and slices.

    Raises:
        InputError: there is no checkpoint or no test subject.
    """
    trained = load_trained(workdir)
    config = build_data.fitting(config, trained.config, workdir)
    scoring = build.build_scoring(config)
    cohort, stores = prepare(config, workdir)
    names = _interleaved(cohort)
    if not names:
        raise InputError(
            f"{workdir / 'split.json'} has no test subject to evaluate on: use more "
            "subjects, or --mode train."
        )
    table = configurations(len(trained.space.modalities), proper=True)
    questions = table if all_configurations else table[table.sum(axis=1) == 1]
    exam = _set_exam(trained, scoring, questions, stores["train"])
    drawn = exam.scoring.algorithm1_subjects or len(names)
    results = []
    for place, name in enumerate(names):
        path = workdir / "evaluation" / "parts" / f"{name}.npz"
        facts = (cohort.subjects[name], place < drawn, place < 2)
        results.append(_kept(path, exam, *facts))
        print(f"evaluated {place + 1}/{len(names)}: {name}", flush=True)
    return _gather(exam, trained.step, names, results)


def _set_exam(
    trained: Trained, scoring: Scoring, questions: Array, store: Store
) -> Exam:
    moments = fit_moments(
        (entry.present, store.subject_slices(entry.name)) for entry in store.subjects
    )
    answers = {name: make_answer(trained, name, scoring) for name in SAMPLERS}
    depends = [
        trained.digest,
        dataclasses.asdict(scoring),
        questions.tolist(),
        [[entry.name, entry.crc] for entry in store.subjects],
    ]
    key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
    return Exam(trained.space, scoring, questions, moments, answers, key)


def _interleaved(cohort: Cohort) -> list[str]:
    """The test subjects, groups in turn, so that the first few hold each group."""
    groups: dict[str, list[str]] = {}
    for name in cohort.split["test"]:
        groups.setdefault(cohort.subjects[name].group, []).append(name)
    queues = [groups[group] for group in sorted(groups)]
    longest = max(map(len, queues), default=0)
    return [q[i] for i in range(longest) for q in queues if i < len(q)]


def _kept(
    path: pathlib.Path, exam: Exam, subject: Subject, drawn: bool, shown: bool
) -> tuple[list[dict], dict[str, Array]]:
    """The subject's rows and panels: those at `path` if they answer the same exam."""
    times = [path.stat().st_mtime_ns for path in subject.files.values()]
    key = json.dumps([exam.key, drawn, shown, subject.name, times])
    if path.is_file():
        with np.load(path) as kept:
            if str(kept["key"]) == key:
                panels = {n[6:]: kept[n] for n in kept.files if n.startswith("panel_")}
                return json.loads(str(kept["rows"])), panels
    rows, panels = examine(exam, subject, drawn, shown)
    content = io.BytesIO()
    arrays = {f"panel_{name}": array for name, array in panels.items()}
    np.savez_compressed(content, key=key, rows=json.dumps(rows), **arrays)
    write_whole(path, content.getvalue())
    return rows, panels


def _gather(
    exam: Exam, step: int, names: list[str], results: list[tuple]
) -> Evaluation:
    subjects = [row for rows, _ in results for row in rows]
    panels = {
        n: panels for n, (_, panels) in zip(names, results, strict=True) if panels
    }
    facts = {
        "step": step,
        "profile": TABLE1.name,
        "test_subjects": len(names),
        "evaluations": exam.scoring.steps,
        "algorithm1": _same_slices(subjects),
        **_asked(exam, names, subjects),
    }
    rows = _summary(subjects)
    rows.sort(key=lambda row: exam.modalities.index(row["modality"]))
    return Evaluation(rows, subjects, facts, exam.modalities, panels)


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


def _same_slices(subjects: list[dict]) -> dict:
    """Algorithm 1 and the mean on the very slices that Algorithm 1 answered for.

    Their PSNRs by modality, averaged over subjects, with that one modality missing.
    """
    single = [row for row in subjects if row["missing"] == row["modality"]]
    drawn = [row for row in single if row["method"] == "algorithm1"]
    same = [row for row in single if row["method"] == "mean_same_slices"]
    slices = {row["subject"]: row["slices"] for row in drawn}
    return {
        "subjects": len(slices),
        "slices": sum(slices.values()),
        "psnr": _by_modality(drawn),
        "psnr_of_mean": _by_modality(same),
    }


def _by_modality(rows: list[dict]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["modality"], []).append(row["psnr"])
    return {modality: float(np.mean(psnrs)) for modality, psnrs in values.items()}
