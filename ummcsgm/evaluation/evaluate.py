"""Checkpoint and split -> all numbers of an evaluation, as one plain dict.

`evaluation_results`, which `reporting` writes, has only plain values and arrays:

rows        table.csv: dicts of method, missing, modality, profile, profile_hash, metric,
            mean, sd, subjects, slices; means over subjects
subjects    subjects.csv: dicts of subject, group, method, missing, modality, slices,
            psnr, ssim_global, ssim_wang, mae, crps (None where not measured)
records     calibration.csv: dicts of subject, group, method, draws, slices, missing,
            modality, voxels, mae_of_mean, mse_of_mean; `raw` and `recalibrated`, each
            the numbers of those draws or None, and `predicted` or None
curves      `ensemble.calibration_curves`: {"reliability" | "ranks": {version:
            {modality: {"expected", "measured", "low", "high": arrays}}}}
facts       metrics.json: step, profile, profile_hash, test_subjects, evaluations, few,
            questions, scored; `algorithm1` and `warm` (subjects, slices, psnr and
            psnr_of_mean by modality); `calibration` (draws, factors, fits, summaries,
            predicted: with the ends of their intervals); `coherence` (of the fit: rho,
            lag_one, draws; summaries)
modalities  names, in the order of channels
panels      by subject, up to two: {"truth" | method: [M, H, W] grey levels}
pictures    by subject, up to two: {"truth", "mean", "sd": [M, H, W], "draws": [M, n, H, W]}
slabs       by subject: {"records": dicts of subject, group, slices, draws, flatness,
            modality, image, rho and numbers; "pictures": {"truth", "mean": [M, S, W],
            "draws": [M, n, S, W]}, or {} where there are none}
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

from ummcsgm.baselines.ridge import fit_normal_equations
from ummcsgm.config import build, build_data
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.config.preparation import prepare
from ummcsgm.data.cohort import Cohort
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.store import Store
from ummcsgm.diffusion.missingness import missing_patterns
from ummcsgm.distributed import devices
from ummcsgm.evaluation import slabs
from ummcsgm.evaluation.ensemble import SAMPLER, calibration_curves, predictions, summaries
from ummcsgm.evaluation.exam import METHODS, Exam, Share, examine
from ummcsgm.evaluation.marks import Marks, by_name, digest_of, kept
from ummcsgm.evaluation.metrics import mean_and_sd
from ummcsgm.evaluation.protocols import TABLE1, profile_hash
from ummcsgm.evaluation.rehearsal import calibrated, examine_slabs
from ummcsgm.inference.predictor import (
    TrainedModel,
    load_trained_model,
    make_mean_predictor,
    make_sampler,
)
from ummcsgm.types import Array, Config, InputError

METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")
SAMPLERS = ("euler_maruyama", SAMPLER)


def evaluate(
    workdir: pathlib.Path, config: Config | None, all_configurations: bool
) -> tuple[dict, Cohort]:
    """(`evaluation_results`, cohort): the newest checkpoint of `workdir` on the split's
    test subjects.

    Where the data lies and how much is asked is told by `config`, if it is given, else
    by the config in the checkpoint.

    Under profile `umm-csgm-table1`; every question with one of a subject's modalities
    left out, or every configuration that leaves something seen. What a subject was
    never scanned with is missing too, and has no truth to be scored. `mean` and the
    floors answer for all scored slices; Algorithm 1, and the draws that measure the
    posterior, for config.evaluate's shares of subjects and slices. On validation
    subjects alone, if there are any, factors are fitted that recalibrate the spread of
    draws, and how their noise is to correlate along z: workdir/calibration.json. The
    processes of a job share the subjects, and all return the same.

    Raises:
        InputError: there is no checkpoint or no test subject.
    """
    trained = load_trained_model(workdir)
    config = build_data.compatible_config(config, trained.config, workdir)
    scoring = build.build_evaluation_options(config)
    cohort, stores = prepare(config, workdir)
    names = interleaved(cohort, "test")
    if not names:
        raise InputError(
            f"{workdir / 'split.json'} has no test subject to evaluate on: use more "
            "subjects, or --mode train."
        )
    table = missing_patterns(len(trained.space.modalities), proper=True)
    single = table[table.sum(axis=1) == 1]
    exam = _set_exam(trained, scoring, single, stores["train"])
    parts = workdir / "evaluation" / "parts"
    drawing = _make_drawing(trained, exam)
    inside = [cohort.subjects[name] for name in interleaved(cohort, "validation")]
    inside = inside[: scoring.draw_subjects or None]
    exam = calibrated(workdir, exam, inside, trained, drawing)
    exam = _asking(exam, table if all_configurations else single)
    subjects = [cohort.subjects[name] for name in names]
    marks = _examine_all(parts, exam, subjects)
    answers = {rho: drawing(rho) for rho in (0.0, exam.coherence.get("rho", 0.0))}
    some = subjects[: scoring.slab_subjects or None]
    coherence = examine_slabs(parts / "slabs", exam, some, answers)
    return _gather(exam, trained.step, marks, coherence), cohort


def _examine_all(folder: pathlib.Path, exam: Exam, subjects: list[Subject]) -> dict[str, Marks]:
    drawn = exam.scoring.algorithm1_subjects or len(subjects)
    measured = exam.scoring.draw_subjects or len(subjects)

    def one(place: int) -> Marks:
        subject = subjects[place]
        share = Share(place < drawn, place < measured, place < 2)
        key = [exam.key, dataclasses.astuple(share)]
        ask = functools.partial(examine, exam, subject, share)
        marks = kept(folder / f"{subject.name}.npz", key, subject, ask)
        print(f"evaluated {place + 1}/{len(subjects)}: {subject.name}", flush=True)
        return marks

    return by_name(subjects, devices.map_across_processes(one, len(subjects)))


def _set_exam(
    trained: TrainedModel, scoring: EvaluationOptions, questions: Array, store: Store
) -> Exam:
    moments = fit_normal_equations(
        (entry.present, store.subject_slices(entry.name)) for entry in store.subjects
    )
    mean = make_mean_predictor(trained, scoring)
    samplers = {name: make_sampler(trained, name, scoring) for name in SAMPLERS}
    key = digest_of(
        trained.digest,
        dataclasses.asdict(scoring),
        questions.tolist(),
        [[entry.name, entry.crc] for entry in store.subjects],
        profile_hash(TABLE1),
    )
    return Exam(trained.space, scoring, questions, moments, mean, samplers, {}, {}, key)


def _make_drawing(trained: TrainedModel, exam: Exam) -> Callable[[float], Callable]:
    """drawing(rho): SAMPLER with noise of this rho, compiled once for each."""

    @functools.cache
    def drawing(rho: float) -> Callable:
        if rho == 0:
            return exam.samplers[SAMPLER]
        return make_sampler(trained, SAMPLER, exam.scoring, rho=rho)

    return drawing


def _asking(exam: Exam, questions: Array) -> Exam:
    key = digest_of(exam.key, questions.tolist())
    return dataclasses.replace(exam, questions=questions, key=key)


def interleaved(cohort: Cohort, split: str) -> list[str]:
    """The split's subjects, groups in turn, so that the first few hold each group."""
    groups: dict[str, list[str]] = {}
    for name in cohort.split[split]:
        groups.setdefault(cohort.subjects[name].group, []).append(name)
    queues = [groups[group] for group in sorted(groups)]
    longest = max(map(len, queues), default=0)
    return [q[i] for i in range(longest) for q in queues if i < len(q)]


def _gather(exam: Exam, step: int, marks: dict[str, Marks], coherence: dict[str, Marks]) -> dict:
    subjects = [row for one in marks.values() for row in one.rows]
    records = [record for one in marks.values() for record in one.records]
    along = [record for one in coherence.values() for record in one.records]
    scoring = exam.scoring
    facts = {
        "step": step,
        "profile": TABLE1.name,
        "profile_hash": profile_hash(TABLE1),
        "test_subjects": len(marks),
        "evaluations": scoring.algorithm1_steps,
        "few": scoring.sampler_steps,
        "algorithm1": _same_slices(subjects, "algorithm1", "mean_same_slices"),
        SAMPLER: _same_slices(subjects, SAMPLER, "mean_of_draw_slices")
        | {"psnr_of_mean_of_draws": _by_modality(_single(subjects, "warm_mean"))},
        "calibration": {
            "draws": scoring.draws,
            "factors": {name: own["factor"] for name, own in exam.factors.items()},
            "fits": exam.factors,
            "summaries": summaries(records),
            "predicted": predictions(records),
        },
        "coherence": exam.coherence | {"summaries": slabs.summaries(along)},
        **_asked(exam, len(marks), subjects),
    }
    rows = summary(subjects, METHODS)
    rows.sort(key=lambda row: exam.modalities.index(row["modality"]))
    return {
        "rows": rows,
        "subjects": subjects,
        "records": records,
        "curves": calibration_curves(records, exam.modalities),
        "facts": facts,
        "modalities": exam.modalities,
        "panels": {name: one.panels for name, one in marks.items() if one.panels},
        "pictures": {name: one.pictures for name, one in marks.items() if one.pictures},
        "slabs": {
            name: {"records": one.records, "pictures": one.pictures}
            for name, one in coherence.items()
        },
    }


def _asked(exam: Exam, number: int, subjects: list[dict]) -> dict[str, int]:
    """How many of the questions could be scored: the others have no truth."""
    rows = {(row["subject"], row["missing"]) for row in subjects if row["method"] == "mean"}
    return {"questions": len(exam.questions) * number, "scored": len(rows)}


def summary(subjects: list[dict], methods: Sequence[str]) -> list[dict]:
    """Mean and standard deviation over subjects, a row a metric, of these methods."""
    groups: dict[tuple, list[dict]] = {}
    for row in subjects:
        if row["method"] in methods:
            asked = (row["method"], row["missing"], row["modality"])
            groups.setdefault(asked, []).append(row)
    names = ("method", "missing", "modality")
    ruler = {"profile": TABLE1.name, "profile_hash": profile_hash(TABLE1)}
    return [
        dict(zip(names, asked, strict=True))
        | ruler
        | {"metric": metric}
        | mean_and_sd([row[metric] for row in rows])
        | {"slices": sum(row["slices"] for row in rows)}
        for asked, rows in groups.items()
        for metric in METRICS
    ]


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
    return {modality: mean_and_sd(psnrs)["mean"] for modality, psnrs in values.items()}
