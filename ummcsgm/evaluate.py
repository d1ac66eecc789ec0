"""Checkpoint + split -> rows of numbers, and the slices of a figure.

Each test subject's numbers are kept in the workdir as soon as they are there, under a
key of what they depend on: an evaluation that was stopped continues where it was.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Callable

import numpy as np

from ummcsgm import build
from ummcsgm.answer import (
    SAMPLERS,
    Trained,
    load_trained,
    make_answer,
    slice_addresses,
)
from ummcsgm.baselines.ridge import Moments, fit_moments, ridge
from ummcsgm.completion import configurations
from ummcsgm.data.layouts import Subject
from ummcsgm.data.subjects import Prepared, network_slices, prepare_subject
from ummcsgm.data.window import paste
from ummcsgm.files import write_whole
from ummcsgm.metrics import TABLE1, grey_scale, score, scored_slices
from ummcsgm.types import Array, InputError

METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")
METHODS = ("ridge", "ridge2", "mean", "algorithm1")


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


@dataclasses.dataclass(frozen=True)
class Exam:
    """What every test subject is asked, and who answers."""

    trained: Trained
    scoring: build.Scoring
    questions: Array  # [Q, M] bool
    moments: Moments
    answers: dict[str, Callable]  # by sampler; each compiled once

    @property
    def modalities(self) -> tuple[str, ...]:
        """The complete space, in the order of channels."""
        return self.trained.space.modalities


def evaluate(workdir: pathlib.Path, all_configurations: bool) -> Evaluation:
    """The newest checkpoint of `workdir` scored on the split's test subjects.

    Under profile `umm-csgm-table1`; every question with one modality missing, or every
    configuration that leaves something seen. `mean` and the floors answer for all
    scored slices; Algorithm 1 for config.evaluate's share of subjects and slices.

    Raises:
        InputError: there is no checkpoint or no test subject.
    """
    trained = load_trained(workdir)
    cohort = build.build_cohort(trained.config, workdir)
    names = _interleaved(cohort)
    if not names:
        raise InputError(
            f"{workdir / 'split.json'} has no test subject to evaluate on: use more "
            "subjects, or --mode train."
        )
    table = configurations(len(trained.space.modalities), proper=True)
    store = build.build_store(trained.config, workdir, cohort)
    scoring = build.build_scoring(trained.config)
    exam = Exam(
        trained,
        scoring,
        table if all_configurations else table[table.sum(axis=1) == 1],
        fit_moments(store.subject_slices(entry.name) for entry in store.subjects),
        {name: make_answer(trained, name, scoring) for name in SAMPLERS},
    )
    drawn = exam.scoring.algorithm1_subjects or len(names)
    results = []
    for place, name in enumerate(names):
        subject = cohort.subjects[name]
        results.append(_kept(workdir, exam, subject, place < drawn, place < 2))
        print(f"evaluated {place + 1}/{len(names)}: {name}", flush=True)
    return _gather(exam, names, results)


def _interleaved(cohort: build.Cohort) -> list[str]:
    """The test subjects, groups in turn, so that the first few hold each group."""
    groups: dict[str, list[str]] = {}
    for name in cohort.split["test"]:
        groups.setdefault(cohort.subjects[name].group, []).append(name)
    queues = [groups[group] for group in sorted(groups)]
    longest = max(map(len, queues), default=0)
    return [q[i] for i in range(longest) for q in queues if i < len(q)]


def _kept(
    workdir: pathlib.Path, exam: Exam, subject: Subject, drawn: bool, shown: bool
) -> tuple[list[dict], dict[str, Array]]:
    """The subject's rows and panels, from the workdir if they are there."""
    depends = [
        exam.trained.digest,
        dataclasses.asdict(exam.scoring),
        exam.questions.tolist(),
        [drawn, shown, subject.name],
        {m: path.stat().st_mtime_ns for m, path in subject.files.items()},
    ]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    path = workdir / "evaluation" / "parts" / f"{subject.name}.npz"
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


def examine(
    exam: Exam, subject: Subject, drawn: bool, shown: bool
) -> tuple[list[dict], dict[str, Array]]:
    """One subject's rows, and its panels if it is to be shown.

    A row has subject, group, method, missing, modality, slices and the metrics.
    `mean_same_slices` is `mean` on the slices that Algorithm 1 answered for.
    """
    prepared = prepare_subject(subject, exam.modalities, exam.trained.space.grid)
    z = scored_slices(prepared.brain, TABLE1)
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
    exam: Exam, prepared: Prepared, z: Array, missing: Array, channel: int, images: Array
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
    """Truth and every method's answer with one missing, [M, H, W] in grey levels."""
    singles = [int(np.argmax(q.sum() == 1 and q)) for q in exam.questions if q.sum() == 1]
    where = [i for i, q in enumerate(exam.questions) if q.sum() == 1]
    panels = {"truth": []} | {m: [] for m in METHODS if m in estimates}
    for question, channel in zip(where, singles, strict=True):
        name = exam.modalities[channel]
        volume = prepared.case.volumes[name]
        grey = grey_scale(volume, prepared.brain, TABLE1)
        panels["truth"].append(volume[z] * grey)
        for method in panels.keys() - {"truth"}:
            slices, images = estimates[method]
            at = int(np.flatnonzero(slices == z)[0])
            image = paste(prepared.window, images[question, at, ..., channel])
            image = image * prepared.scales[name] * prepared.brain[z]
            panels[method].append(image * grey)
    return {k: np.clip(v, 0, TABLE1.peak).astype(np.float32) for k, v in panels.items()}


def _gather(exam: Exam, names: list[str], results: list) -> Evaluation:
    subjects = [row for rows, _ in results for row in rows]
    panels = {
        name: panels
        for name, (_, panels) in zip(names, results, strict=True)
        if panels
    }
    facts = {
        "step": exam.trained.step,
        "profile": TABLE1.name,
        "test_subjects": len(names),
        "evaluations": exam.scoring.steps,
        "algorithm1": _same_slices(subjects),
    }
    return Evaluation(_summary(subjects), subjects, facts, exam.modalities, panels)


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
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "sd": sd, "subjects": len(values)}


def _same_slices(subjects: list[dict]) -> dict:
    """Algorithm 1 and the mean on the very slices that Algorithm 1 answered for."""
    by_method = {
        method: [row for row in subjects if row["method"] == method]
        for method in ("mean_same_slices", "algorithm1")
    }
    drawn = by_method["algorithm1"]
    return {
        "subjects": len({row["subject"] for row in drawn}),
        "slices": len({row["subject"] for row in drawn})
        and sum(row["slices"] for row in drawn) * len({r["subject"] for r in drawn})
        // len(drawn),
        "psnr": {
            method: float(np.mean([row["psnr"] for row in rows]))
            for method, rows in by_method.items()
        },
    }
