"""Every number of an evaluation: one cached map over subjects and methods.

`evaluate_subjects` reads a subject once, or not at all, and hands it to all parts that are not on
disk yet: a method's predictions and scores, the slabs, or what a study adds. A part lies beside its
method, under a key of all that it depends on, so that an evaluation that was stopped continues, and
a method that is trained later, or copied in from another workdir, adds only what is new.

`evaluation_results`, which `reporting` writes, has only plain values and arrays:

rows        table.csv: dicts of method, missing, modality, profile, profile_hash, metric,
            mean, sd, subjects; means over subjects. Also slices, which no file has
subjects    subjects.csv: dicts of subject, group, method, missing, modality, slices,
            psnr, ssim_global, ssim_wang, mae. Also crps (None where not measured),
            which study/subjects.csv has and this file has not
records     calibration.csv: dicts of subject, group, method, draws, slices, missing,
            modality, voxels, mae_of_mean, mse_of_mean, and the other numbers of
            `ensemble.score_draws` and `lesions.score_lesions`, of which files have some
lesions     lesions.csv: dicts of subject, group, modality, region, slice, voxels, pattern
            (of a phantom, else None), image, mean, p90, enhancement (or None)
curves      `ensemble.calibration_curves`: {"reliability" | "ranks" | "predicted":
            {modality: {"expected", "measured", "low", "high": arrays}}}
facts       metrics.json: step, profile, profile_hash, test_subjects, evaluations, few,
            questions, scored; `algorithm1` and `warm` (subjects, slices, psnr and
            psnr_of_mean by modality); `calibration` (draws, summaries, predicted: with the
            ends of their intervals; a summary's `structure` is
            `structure.summarise_structure`); `lesions` (`lesions.lesion_results`);
            `two_sample` (the rows of `two_sample.compare_modalities`); `coherence`
            (of the fit: rho, lag_one, draws; summaries)
modalities  names, in the order of channels
panels      by subject, up to two: {"truth" | method: [M, H, W] grey levels}
pictures    by subject, up to two: {"truth", "mean", "sd": [M, H, W], "draws": [M, n, H, W]} of
            `lesion_slice`
two_sample  by modality: the patches of `two_sample.surest` in grey levels
slabs       by subject: {"records": dicts of subject, group, slices, draws, flatness,
            modality, image, rho and numbers; "pictures": {"truth", "mean": [M, S, W],
            "draws": [M, n, S, W]}, or {} where there are none}
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ummcsgm.config import build
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.config.build_methods import MM_CSN, build_gallery
from ummcsgm.data.cohort import Cohort
from ummcsgm.data.crop import ImageSpace
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.diffusion.missingness import missing_patterns
from ummcsgm.distributed import processes
from ummcsgm.evaluation import ensemble, through_plane, two_sample
from ummcsgm.evaluation.ensemble import SAMPLER
from ummcsgm.evaluation.lesions import lesion_results, lesion_rows, lesion_slice, skipped_line
from ummcsgm.evaluation.methods import TrainedMethod
from ummcsgm.evaluation.metrics import group_rows, mean_and_sd
from ummcsgm.evaluation.protocols import TABLE1, profile_hash
from ummcsgm.evaluation.subject import (
    EvaluatedSubject,
    absolute_error,
    choose_evenly,
    grey_images,
    predict_patterns,
    read_subject,
    sample_patterns,
    score_prediction,
    true_grey_images,
)
from ummcsgm.inference.predictor import CALIBRATION, DRAW_KEYS
from ummcsgm.types import Array, Config, Estimate, Missing
from ummcsgm.utils.atomic_io import UNREADABLE, json_without_nan, write_atomic
from ummcsgm.utils.provenance import code_digest

ALGORITHM1 = "algorithm1"
FLOORS = ("ridge", "ridge2")
MEAN = "mean"  # the mm-CSN's mean in `evaluation_results`
TABLE_METHODS = (*FLOORS, MEAN, ALGORITHM1, SAMPLER)
METRICS = ("psnr", "ssim_global", "ssim_wang", "mae")
SHOWN = 2  # subjects in figures and gallery


class Share(NamedTuple):
    """What is measured of one subject, besides the scores of every prediction."""

    algorithm1: bool
    draws: bool
    shown: bool  # in figures and gallery


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
    """What every method is evaluated on: missing patterns [Q, M] of `subjects`."""

    space: ImageSpace
    options: EvaluationOptions
    patterns: Missing
    gallery_slices: int  # of each shown subject
    subjects: tuple[Subject, ...]

    def share(self, name: str) -> Share:
        """What is measured of the subject of this name: the first ones have more."""
        index = [subject.name for subject in self.subjects].index(name)
        counts = self.options.algorithm1_subjects, self.options.draw_subjects
        algorithm1, draws = (index < (count or len(self.subjects)) for count in counts)
        return Share(algorithm1, draws, index < SHOWN)

    def key(self, method: TrainedMethod) -> list:
        """What the numbers of a method depend on besides the subject, as JSON values."""
        return [
            dataclasses.asdict(self.options),
            self.patterns.tolist(),
            self.space.modalities,
            dataclasses.asdict(self.space.view),
            profile_hash(TABLE1),
            method.name,
            method.digest,
        ]


@dataclasses.dataclass(frozen=True)
class SubjectResult:
    """A part of one subject's numbers.

    Rows have subject, group, method, missing, modality, slices, the metrics and crps;
    records are those of draws, slabs or segmentations; arrays are by purpose ("panels",
    "pictures", "gallery", "two_sample", "maps", "grid"), then by name.
    """

    rows: list[dict] = dataclasses.field(default_factory=list)
    records: list[dict] = dataclasses.field(default_factory=list)
    arrays: dict[str, dict[str, Array]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
    """What is computed of each subject that has a key, and kept as folder/SUBJECT.npz.

    `keys` has, by subject, what the result depends on besides the subject's scans and the
    code: values that JSON has.
    """

    folder: pathlib.Path
    keys: dict[str, list]
    compute: Callable[[EvaluatedSubject], SubjectResult]


def build_specs(
    config: Config, cohort: Cohort, all_configurations: bool
) -> tuple[EvaluationSpec, EvaluationSpec]:
    """(test, validation): what is evaluated of the cohort's subjects of either split.

    Patterns with one modality missing, or in the test all that leave something seen.
    Groups take turns, so that the first few subjects hold each group.
    """
    space, options = build.build_space(config), build.build_evaluation_options(config)
    every = missing_patterns(len(space.modalities), proper=True)
    single = every[every.sum(axis=1) == 1]
    gallery = build_gallery(config)
    test = interleaved_subjects(cohort, "test")
    validation = interleaved_subjects(cohort, "validation")[: options.draw_subjects or None]
    patterns = every if all_configurations else single
    return (
        EvaluationSpec(space, options, patterns, gallery, test),
        EvaluationSpec(space, options, single, gallery, validation),
    )


def interleaved_subjects(cohort: Cohort, split: str) -> tuple[Subject, ...]:
    """The split's subjects, one of each group in turn."""
    groups: dict[str, list[Subject]] = {}
    for name in cohort.split[split]:
        groups.setdefault(cohort.subjects[name].group, []).append(cohort.subjects[name])
    queues = [groups[group] for group in sorted(groups)]
    longest = max(map(len, queues), default=0)
    return tuple(q[i] for i in range(longest) for q in queues if i < len(q))


def evaluate(
    workdir: pathlib.Path,
    specs: tuple[EvaluationSpec, EvaluationSpec],
    methods: Sequence[TrainedMethod],
    more: dict[str, Part],
) -> tuple[dict, dict[str, dict[str, SubjectResult]]]:
    """(`evaluation_results`, the results by part and subject) of the test subjects.

    `specs` are those of test and validation, see `build_specs`; `methods` are the mm-CSN,
    the two ridge floors, and others. The rho of draws is fitted on the validation
    subjects, see `calibrate`. A method's part has its name, the slabs' is "slab"; `more`
    are other parts, by name, that are computed of the subjects as they are read.
    """
    spec, validation = specs
    mm_csn, parts = methods[0], workdir / "evaluation" / "parts"
    coherence = calibrate(parts / "validation", workdir / CALIBRATION, validation, mm_csn)
    method_parts = {method.name: method_part(spec, method) for method in methods}
    rhos = [*dict.fromkeys((0.0, _rho(coherence)))]
    method_parts["slab"] = slab_part(parts / "slabs", spec, mm_csn, rhos)
    results = evaluate_subjects(spec, method_parts | more)
    evaluation = evaluation_results(spec, mm_csn, coherence, results)
    lacking = skipped_line(evaluation["facts"]["lesions"])
    if lacking and processes.is_main():
        print(lacking, flush=True)
    return evaluation, results


# The cached map.


def evaluate_subjects(
    spec: EvaluationSpec, parts: dict[str, Part]
) -> dict[str, dict[str, SubjectResult]]:
    """The results by part and subject: those on disk, and the others computed.

    A subject is read when the first part is not on disk, once; its segmentation is read
    beside it by the parts that need it. A second call reads it again: see `calibrate`. The
    processes of a job share the subjects, and all return the same.
    """

    def evaluate_one(index: int) -> dict[str, SubjectResult]:
        subject = spec.subjects[index]
        read = functools.cache(lambda: read_subject(subject, spec.space, spec.patterns))
        results, count = {}, f"{index + 1}/{len(spec.subjects)}"
        for name, part in parts.items():
            if subject.name not in part.keys:
                continue
            path = part.folder / f"{subject.name}.npz"
            key = _part_key(part.keys[subject.name], subject)
            results[name] = _load(path, key)
            if results[name] is None:
                results[name] = part.compute(read())
                _save(path, key, results[name])
                print(f"evaluated {count}: {subject.name}, {name}", flush=True)
        return results

    every = processes.map_across_processes(evaluate_one, len(spec.subjects))
    return {
        name: {
            subject.name: results[name]
            for subject, results in zip(spec.subjects, every, strict=True)
            if name in results
        }
        for name in parts
    }


def _part_key(key: list, subject: Subject) -> str:
    files = [*subject.files.values(), *filter(None, [subject.mask, subject.segmentation])]
    times = [file.stat().st_mtime_ns for file in files]
    return json.dumps([code_digest(), *key, subject.name, times])


def _load(path: pathlib.Path, key: str) -> SubjectResult | None:
    """The result at `path` if it has this key."""
    # A file may be cut short, as where it was copied in part.
    with contextlib.suppress(*UNREADABLE, KeyError), np.load(path) as saved:
        if str(saved["key"]) != key:
            return None
        arrays: dict[str, dict[str, Array]] = {}
        for entry in saved.files:
            purpose, _, name = entry.partition("/")
            if name:
                arrays.setdefault(purpose, {})[name] = saved[entry]
        numbers = (json.loads(str(saved[name])) for name in ("rows", "records"))
        return SubjectResult(*numbers, arrays)
    return None


def _save(path: pathlib.Path, key: str, result: SubjectResult) -> None:
    content = io.BytesIO()
    arrays = {
        f"{purpose}/{name}": array
        for purpose, group in result.arrays.items()
        for name, array in group.items()
    }
    texts = {"rows": json.dumps(result.rows), "records": json.dumps(result.records)}
    np.savez_compressed(content, key=key, **texts, **arrays)
    write_atomic(path, content.getvalue())


# One subject, one method.


def method_part(spec: EvaluationSpec, method: TrainedMethod) -> Part:
    """The scores of a method; of one that draws, also those of its draws."""
    keys = {}
    for subject in spec.subjects:
        share = spec.share(subject.name)
        keys[subject.name] = [*spec.key(method), share, spec.gallery_slices if share.shown else 0]
    return Part(method.folder, keys, functools.partial(evaluate_method, spec, method))


def evaluate_method(
    spec: EvaluationSpec, method: TrainedMethod, evaluated: EvaluatedSubject
) -> SubjectResult:
    """One method's scores, records and images of one subject.

    Of a method that draws there are rows of ALGORITHM1 and `mean_same_slices`, the mean on
    its slices; of SAMPLER, the first of the K draws, `warm_mean`, their mean, and
    `mean_of_draw_slices`, the network's mean on their slices. `crps` is of the brain's
    voxels on the slices of the K draws, in grey levels: the absolute error of the method's
    mean. It is None for other rows, and where no draws are measured.
    """
    share, z, options = spec.share(evaluated.subject.name), evaluated.z, spec.options
    estimate = predict_patterns(evaluated, z, method.predict)
    predictions, records, pictures = {method.name: (z, estimate.mean)}, [], {}
    arrays: dict[str, dict[str, Array]] = {}
    if method.make_sampler and share.algorithm1:
        few = choose_evenly(z, options.algorithm1_slices)
        images = sample_patterns(evaluated, few, method.make_sampler("euler_maruyama"))
        predictions["mean_same_slices"] = few, _on(few, evaluated, estimate).mean
        predictions[ALGORITHM1] = few, images
    drawn = choose_evenly(z, options.draw_slices)
    known = _on(drawn, evaluated, estimate)
    if method.make_sampler and share.draws:
        sample = method.make_sampler(SAMPLER)
        first, average, records = ensemble.measure_draws(evaluated, drawn, known, sample, options)
        predictions["mean_of_draw_slices"] = drawn, known.mean
        predictions |= {SAMPLER: (drawn, first), "warm_mean": (drawn, average)}
        if share.shown and len(drawn):
            shown = lesion_slice(evaluated, drawn[len(drawn) // 2])
            there = _on(shown, evaluated, estimate)
            pictures = ensemble.draws_pictures(evaluated, shown, there, sample, options.draws)
        if options.two_sample_steps:
            arrays["two_sample"] = two_sample.keep_slices(evaluated, drawn, known, first)
    crps = {(SAMPLER, r["missing"], r["modality"]): r["crps"] for r in records}
    rows = []
    for name, (slices, images) in predictions.items():
        for pattern, channel in np.argwhere(evaluated.scored):
            if method.name in FLOORS and not np.isfinite(images[pattern, ..., channel]).all():
                continue
            missing = evaluated.missing[pattern]
            scores = score_prediction(evaluated, slices, missing, channel, images[pattern])
            key = (name, scores["missing"], scores["modality"])
            if share.draws and name == method.name:
                crps[key] = absolute_error(evaluated, drawn, channel, known.mean[pattern])
            rows.append(evaluated.labels | {"method": name} | scores | {"crps": crps.get(key)})
    if not share.shown:
        return SubjectResult(rows, records, arrays)
    arrays |= {"pictures": pictures, "gallery": _gallery(spec, method, evaluated, estimate)}
    arrays["panels"] = _panels(spec, method, evaluated, estimate, predictions)
    return SubjectResult(rows, records, arrays)


def _on(z: Array, evaluated: EvaluatedSubject, estimate: Estimate) -> Estimate:
    """The part [Q, S', ...] of an estimate [Q, S, ...] of all slices that is of `z` [S']."""
    return estimate.map(lambda images: images[:, np.isin(evaluated.z, z)])


def _panels(
    spec: EvaluationSpec,
    method: TrainedMethod,
    evaluated: EvaluatedSubject,
    estimate: Estimate,
    predictions: dict[str, tuple],
) -> dict[str, Array]:
    """[M, H, W] grey levels of one slice: the truth, and each prediction by name."""
    share, z = spec.share(evaluated.subject.name), evaluated.z
    few = choose_evenly(z, spec.options.algorithm1_slices) if share.algorithm1 else z
    shown = choose_evenly(few, 1)[:1]
    images = {method.name: _on(shown, evaluated, estimate).mean}
    if ALGORITHM1 in predictions:
        slices, drawn = predictions[ALGORITHM1]
        images[ALGORITHM1] = drawn[:, slices == shown]
    if SAMPLER in predictions:
        images[SAMPLER] = _first_draw(method, evaluated, shown, estimate)
    panels = {name: grey_images(evaluated, shown, array)[:, 0] for name, array in images.items()}
    return {"truth": true_grey_images(evaluated, shown)[:, 0]} | panels


def _gallery(
    spec: EvaluationSpec, method: TrainedMethod, evaluated: EvaluatedSubject, estimate: Estimate
) -> dict[str, Array]:
    """`z` [S] and [M, S, H, W] uint8: the truth and the prediction; of a method that
    draws a draw, and `sd`, the predicted one of its mean's error, if there is one."""
    if not len(evaluated.missing):
        return {}
    z = choose_evenly(evaluated.z, spec.gallery_slices)
    known = _on(z, evaluated, estimate)
    images = {method.name: known.mean}
    if method.make_sampler:
        images[SAMPLER] = _first_draw(method, evaluated, z, estimate)
        if known.variance is not None:
            images["sd"] = np.sqrt(known.variance)
    grey = {name: grey_images(evaluated, z, array) for name, array in images.items()}
    grey["truth"] = true_grey_images(evaluated, z)
    return {"z": z} | {name: np.round(array).astype(np.uint8) for name, array in grey.items()}


def _first_draw(
    method: TrainedMethod, evaluated: EvaluatedSubject, z: Array, estimate: Estimate
) -> Array:
    """[Q, S, H, W, M] draw 0 of the slices `z` by SAMPLER; `estimate` is of all slices."""
    slices, sample = evaluated.slices(z), method.make_sampler(SAMPLER)
    known = _on(z, evaluated, estimate)
    images = known.mean.copy()
    for pattern, missing in enumerate(evaluated.missing):
        row = known.select_row(pattern)
        images[pattern] = ensemble.draw(sample, slices, missing, row, 1)[0]
    return images


def slab_part(
    folder: pathlib.Path, spec: EvaluationSpec, method: TrainedMethod, rhos: Sequence[float]
) -> Part:
    """The records of `through_plane.measure_slab` of some subjects, for each rho."""
    some = spec.subjects[: spec.options.slab_subjects or None]
    keys = {subject.name: [*spec.key(method), *rhos] for subject in some}

    def compute(evaluated: EvaluatedSubject) -> SubjectResult:
        count = spec.options.slab_slices
        records, pictures = through_plane.measure_slab(evaluated, method, rhos, count)
        return SubjectResult(records=records, arrays={"pictures": pictures})

    return Part(folder, keys, compute)


# What is fitted on validation subjects.


def calibrate(
    folder: pathlib.Path, path: pathlib.Path, spec: EvaluationSpec, method: TrainedMethod
) -> dict:
    """The `through_plane.fit` of the draws' noise, on the validation subjects of `spec`.

    `path` holds it as JSON, with its rho for `complete`, and beside it what was measured of
    these draws: by modality their `structure`, what their `lesions` say, and the rows of
    `two_sample.compare_modalities`. Where there is no validation subject it is empty, and `path`
    is removed. `folder` keeps the parts.

    A validation subject is read once for the draws and the slabs with rho 0, and once more
    for the slabs with the rho that follows from all of these, if it is not 0: subjects are
    not kept in memory meanwhile. Test subjects are read once.
    """
    options = spec.options

    def measure(evaluated: EvaluatedSubject) -> SubjectResult:
        z = choose_evenly(evaluated.z, options.draw_slices)
        estimate = predict_patterns(evaluated, z, method.predict)
        sample = method.make_sampler(SAMPLER)
        first, _, records = ensemble.measure_draws(evaluated, z, estimate, sample, options)
        arrays = {}
        if options.two_sample_steps:
            arrays["two_sample"] = two_sample.keep_slices(evaluated, z, estimate, first)
        return SubjectResult(records=records, arrays=arrays)

    def measure_slabs(rho: float) -> list[dict]:
        part = slab_part(folder / f"slabs_{rho:g}", spec, method, [rho])
        return _records(evaluate_subjects(spec, {"slab": part})["slab"])

    keys = {subject.name: spec.key(method) for subject in spec.subjects}
    parts = {"draws": Part(folder, keys, measure)}
    parts["slab"] = slab_part(folder / "slabs_0", spec, method, [0.0])
    results = evaluate_subjects(spec, parts)
    records = _records(results["draws"])
    if not records:  # a file of an earlier evaluation is of other subjects
        if processes.is_main():
            path.unlink(missing_ok=True)
        return {}
    coherence = through_plane.fit(_records(results["slab"]), measure_slabs)
    content = {
        "step": method.costs.steps,
        "parameters_sha256": method.digest,
        "code_sha256": code_digest(),
        "sampler": SAMPLER,
        **{key: getattr(options, key) for key in (*DRAW_KEYS, "draws", "draw_slices", "seed")},
        "subjects": [subject.name for subject in spec.subjects],
        "rho": _rho(coherence),
        "coherence": coherence,
        "structure": {
            row["modality"]: row["structure"]
            for row in ensemble.summaries(records)
            if row["missing"] == row["modality"]
        },
        "lesions": lesion_results(records),
        "two_sample": _two_sample_test(spec, results["draws"])[0],
    }
    if processes.is_main():
        write_atomic(path, json.dumps(json_without_nan(content), indent=1))
    return coherence


def _two_sample_test(
    spec: EvaluationSpec, results: dict[str, SubjectResult]
) -> tuple[list[dict], dict]:
    """`two_sample.compare_modalities` of the spec's subjects that have draws."""
    kept = (results[subject.name].arrays.get("two_sample") for subject in spec.subjects)
    subjects = [arrays for arrays in kept if arrays]
    return two_sample.compare_modalities(subjects, spec.space.modalities, spec.options)


def _rho(coherence: dict) -> float:
    return coherence.get("rho", 0.0)


def _records(results: dict[str, SubjectResult]) -> list[dict]:
    return [record for result in results.values() for record in result.records]


# Tables.


def evaluation_results(
    spec: EvaluationSpec,
    mm_csn: TrainedMethod,
    coherence: dict,
    results: dict[str, dict[str, SubjectResult]],
) -> dict:
    """The plain dict of the mm-CSN and the floors that this module's docstring lists, from
    the parts "ridge", "ridge2", MM_CSN and "slab" of `results`."""
    names = [subject.name for subject in spec.subjects]
    rows = [
        row | {"method": MEAN if row["method"] == MM_CSN else row["method"]}
        for name in names
        for part in (*FLOORS, MM_CSN)
        for row in results[part][name].rows
    ]
    records, slabs = _records(results[MM_CSN]), results["slab"]
    table = summary(rows, TABLE_METHODS)
    table.sort(key=lambda row: spec.space.modalities.index(row["modality"]))
    panels = {name: {} for name in names if "panels" in results[MM_CSN][name].arrays}
    for name, images in panels.items():
        for part in (*FLOORS, MM_CSN):
            images |= results[part][name].arrays["panels"]
        images[MEAN] = images.pop(MM_CSN)
    pictures = {name: results[MM_CSN][name].arrays.get("pictures") for name in panels}
    tests, patches = _two_sample_test(spec, results[MM_CSN])
    facts = {
        "step": mm_csn.costs.steps,
        "profile": TABLE1.name,
        "profile_hash": profile_hash(TABLE1),
        "test_subjects": len(names),
        "evaluations": spec.options.algorithm1_steps,
        "few": spec.options.sampler_steps,
        ALGORITHM1: _same_slices(rows, ALGORITHM1, "mean_same_slices"),
        SAMPLER: _same_slices(rows, SAMPLER, "mean_of_draw_slices")
        | {"psnr_of_mean_of_draws": _psnr_by_modality(rows, "warm_mean")},
        "calibration": {
            "draws": spec.options.draws,
            "summaries": ensemble.summaries(records),
            "predicted": ensemble.predictions(records),
        },
        "lesions": lesion_results(records),
        "two_sample": tests,
        "coherence": coherence | {"summaries": through_plane.summaries(_records(slabs))},
        "questions": len(spec.patterns) * len(names),
        "scored": len({(r["subject"], r["missing"]) for r in rows if r["method"] == MEAN}),
    }
    return {
        "rows": table,
        "subjects": rows,
        "records": records,
        "lesions": lesion_rows(records),
        "curves": ensemble.calibration_curves(records, spec.space.modalities),
        "facts": facts,
        "modalities": spec.space.modalities,
        "panels": panels,
        "pictures": {name: images for name, images in pictures.items() if images},
        "two_sample": patches,
        "slabs": {
            name: {"records": slab.records, "pictures": slab.arrays.get("pictures", {})}
            for name, slab in slabs.items()
        },
    }


def summary(rows: list[dict], methods: Sequence[str]) -> list[dict]:
    """Mean and standard deviation over subjects of these methods' rows, a row for each
    method, missing pattern, modality and metric."""
    names = ("method", "missing", "modality")
    groups = group_rows([row for row in rows if row["method"] in methods], names)
    profile = {"profile": TABLE1.name, "profile_hash": profile_hash(TABLE1)}
    return [
        dict(zip(names, group, strict=True))
        | profile
        | {"metric": metric}
        | mean_and_sd([row[metric] for row in members])
        | {"slices": sum(row["slices"] for row in members)}
        for group, members in groups.items()
        for metric in METRICS
    ]


def _same_slices(rows: list[dict], method: str, same: str) -> dict:
    """A method and the mean (named `same`) on the very slices that the method predicted.

    Their PSNRs by modality, averaged over subjects, with that one modality missing.
    """
    drawn = [r for r in rows if r["method"] == method and r["missing"] == r["modality"]]
    slices = {row["subject"]: row["slices"] for row in drawn}
    return {
        "subjects": len(slices),
        "slices": sum(slices.values()),
        "psnr": _psnr_by_modality(rows, method),
        "psnr_of_mean": _psnr_by_modality(rows, same),
    }


def _psnr_by_modality(rows: list[dict], method: str) -> dict[str, float]:
    """A method's means over subjects, with that one modality missing."""
    rows = [row for row in rows if row["method"] == method and row["missing"] == row["modality"]]
    return {
        modality: mean_and_sd([row["psnr"] for row in group])["mean"]
        for (modality,), group in group_rows(rows, ["modality"]).items()
    }
