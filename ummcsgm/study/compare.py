"""The end of a study: every method that was trained, evaluated alike and compared.

Methods whose folders were copied into the workdir count as those trained there.
"""

import io
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from ummcsgm.config import build, build_data
from ummcsgm.config.build_data import prepare
from ummcsgm.config.build_methods import (
    MM_CSN,
    SEGMENTER,
    build_method_names,
    fixed_keys,
    method_config,
    method_folder,
    shows_paper,
)
from ummcsgm.config.schema import check_same
from ummcsgm.distributed import processes
from ummcsgm.evaluation.ensemble import SAMPLER
from ummcsgm.evaluation.evaluate import (
    ALGORITHM1,
    FLOORS,
    EvaluationSpec,
    SubjectResult,
    build_specs,
    evaluate,
    summary,
)
from ummcsgm.evaluation.methods import TrainedMethod, load_method, mm_csn_method, ridge_methods
from ummcsgm.evaluation.metrics import group_rows, mean_and_sd
from ummcsgm.inference.predictor import TrainedModel, load_trained_model
from ummcsgm.reporting import page
from ummcsgm.reporting.evaluation_report import SCORE_COLUMNS, SUBJECT_COLUMNS, write_evaluation
from ummcsgm.reporting.figures import Panels, write_figure
from ummcsgm.reporting.tables import write_csv
from ummcsgm.study import paper_table
from ummcsgm.study.costs import costs_name, costs_part, method_costs
from ummcsgm.study.downstream import (
    MAPS,
    downstream_results,
    load_segmenter,
    segmentation_parts,
    write_first_maps,
)
from ummcsgm.study.significance import add_holm, paired_tests
from ummcsgm.training import checkpoint
from ummcsgm.types import Array, Config, InputError
from ummcsgm.utils.atomic_io import digest, json_without_nan, write_atomic
from ummcsgm.utils.provenance import commit, versions

DRAWS = (SAMPLER, ALGORITHM1)
TESTED = ("difference", "low", "high", "p", "p_holm")
TABLES = {  # in WORKDIR/study: the results they hold, and their columns
    "table": ("rows", SCORE_COLUMNS),
    "subjects": ("subjects", [*SUBJECT_COLUMNS, "crps"]),
    "crps": ("crps", ("method", "modality", "mean", "sd", "subjects")),
    "significance": ("tests", (*"metric modality method reference subjects".split(), *TESTED)),
}
Results = dict[str, dict[str, SubjectResult]]  # by part and subject


def conclude(workdir: pathlib.Path, config: Config | None, all_configurations: bool) -> None:
    """Writes WORKDIR/evaluation, of the mm-CSN and the floors, and WORKDIR/study, of all
    methods that were trained in the workdir.

    The config is that of the checkpoint if it is None. Patterns with one modality missing
    are evaluated, or all that leave something seen.

    Raises:
        InputError: there is no checkpoint or no test subject; the config does not fit the
            checkpoint; or a method was trained on other slices than the mm-CSN.
    """
    trained = load_trained_model(workdir)
    config = build_data.compatible_config(config, trained.config, workdir)
    names = [*build_method_names(config), *[SEGMENTER][: bool(build.build_downstream(config))]]
    for name in names:
        _check_same_training(method_folder(workdir, name), name, trained)
    trained_names = [name for name in names if _is_trained(workdir, name)]
    cohort, stores = prepare(config, workdir)
    spec, validation = build_specs(config, cohort, all_configurations)
    if not spec.subjects:
        raise InputError(
            f"{workdir / 'split.json'} has no test subject to evaluate on: use more "
            "subjects, or --mode train."
        )
    parts = workdir / "evaluation" / "parts"
    mm_csn = mm_csn_method(
        trained, spec.options, parts / MM_CSN, name=MM_CSN, title="mm-CSN mean, 1 evaluation"
    )
    floors = ridge_methods(stores["train"], spec.options.ridge_penalty, parts)
    methods = [
        load_method(method_folder(workdir, name), spec.options)
        for name in trained_names
        if name != SEGMENTER
    ]
    more = {
        costs_name(method.name): costs_part(method_folder(workdir, method.name), spec, method)
        for method in (mm_csn, *methods)
    }
    segmenter = None
    if SEGMENTER in trained_names:
        segmenter = load_segmenter(workdir, config)
        more |= segmentation_parts(workdir, spec, segmenter, [mm_csn, *methods])
    evaluation, results = evaluate(workdir, (spec, validation), [mm_csn, *floors, *methods], more)
    if not processes.is_main():
        return
    write_evaluation(evaluation, workdir / "evaluation")
    entries = _method_entries(workdir, spec, [mm_csn, *floors, *methods], results)
    study = study_results(entries, spec.space.modalities)
    study["facts"] = _facts(config, trained, evaluation["facts"], cohort.split, entries)
    study["structure"] = _structure(evaluation["facts"])
    study["lesions"] = evaluation["facts"]["lesions"]
    study["two_sample"] = evaluation["facts"]["two_sample"]
    study["paper"] = paper_table.rows() if shows_paper(config) else []
    if segmenter:
        study["downstream"] = downstream_results(results, [m.name for m in (mm_csn, *methods)])
        folder = workdir / "study" / "segmentation"
        write_first_maps(folder, spec, segmenter, mm_csn, results[MAPS])
    _write(workdir / "study", study, _galleries(spec, mm_csn, methods, results))
    page.write_report([workdir], workdir / "study")


def _check_same_training(folder: pathlib.Path, name: str, trained: TrainedModel) -> None:
    """Raises InputError if the method in `folder` was not trained on what the mm-CSN was."""
    if checkpoint.latest_step(folder) is None:
        return
    metadata = checkpoint.restore_metadata(folder)
    config = trained.config if name == SEGMENTER else method_config(trained.config, name)
    check_same(build.config_to_json(config), metadata["config"], str(folder), fixed_keys(name))
    if metadata["data"] != trained.data:
        raise InputError(
            f"{folder} was trained on other slices than the mm-CSN: remove it, and "
            "train it again with this workdir's config."
        )


def _is_trained(workdir: pathlib.Path, name: str) -> bool:
    folder = method_folder(workdir, name)
    if checkpoint.latest_step(folder) is not None:
        return True
    print(f"study: {name} is not in {folder} yet", flush=True)
    return False


def _method_entries(
    workdir: pathlib.Path, spec: EvaluationSpec, methods: Sequence[TrainedMethod], results: Results
) -> list[dict]:
    """The study's `methods` in the order of the table: name, title, note and costs of each
    that has rows, and these `rows`."""
    options = spec.options

    def costs(method: TrainedMethod) -> dict | None:
        if method.costs is None:
            return None
        folder = method_folder(workdir, method.name)
        return method_costs(folder, method, results[costs_name(method.name)])

    draw = f"mm-CSN draw, 1 + {options.sampler_steps} evaluations"
    algorithm1 = f"mm-CSN Algorithm 1, {options.algorithm1_steps} evaluations"
    entries = [
        *((m.name, m.title, m.note, m) for m in methods[:1]),
        (SAMPLER, draw, "One draw of each.", None),
        (ALGORITHM1, algorithm1, "One draw.", None),
        *((m.name, m.title, m.note, m) for m in methods[1:]),
    ]
    found = []
    for name, title, note, method in entries:
        part = results[name if method else MM_CSN]
        rows = [row for result in part.values() for row in result.rows if row["method"] == name]
        if rows:
            entry = {"name": name, "title": title, "note": note}
            entry |= {"costs": method and costs(method), "rows": rows}
            found.append(entry)
    counts = {entry["name"]: sum(row["slices"] for row in entry["rows"]) for entry in found}
    for entry in found:
        if entry["name"] in (*DRAWS, *FLOORS):
            few = _fewer_slices(counts[entry["name"]], counts[MM_CSN])
            entry["note"] = f"{entry['note']} {few}".strip()
    return found


def _fewer_slices(count: int, others: int) -> str:
    if count == others:
        return ""
    return (
        f"On {count} slices of the other rows' {others}: do not compare its numbers with "
        "theirs, except the CRPS."
    )


def study_results(entries: Sequence[dict], modalities: Sequence[str]) -> dict:
    """results.json of a study, but for its facts, paper and downstream.

    Tests compare the mm-CSN's mean with every method that is not a draw.
    """
    subjects = [row for entry in entries for row in entry["rows"]]
    names = [entry["name"] for entry in entries]
    others = [name for name in names if name not in (MM_CSN, *DRAWS)]
    tests = [row for m in modalities for row in paired_tests(subjects, MM_CSN, others, m)]
    return {
        "methods": [
            {key: entry[key] for key in ("name", "title", "note", "costs")} for entry in entries
        ],
        "rows": summary(subjects, names),
        "subjects": subjects,
        "crps": _crps_summary(subjects, names, modalities),
        "tests": add_holm(tests),
        "downstream": None,
    }


def _crps_summary(
    subjects: Sequence[dict], names: Sequence[str], modalities: Sequence[str]
) -> list[dict]:
    """Means over subjects, a row for each method and modality that alone is missing."""
    rows = [r for r in subjects if r["crps"] is not None and r["missing"] == r["modality"]]
    groups = group_rows(rows, ("method", "modality"))
    return [
        {"method": name, "modality": modality}
        | json_without_nan(mean_and_sd([row["crps"] for row in groups[name, modality]]))
        for name in names
        for modality in modalities
        if (name, modality) in groups
    ]


def _structure(evaluation_facts: dict) -> list[dict]:
    """The `structure` of draws by modality that alone is missing."""
    return [
        {key: row[key] for key in ("missing", "modality", "structure")}
        for row in evaluation_facts["calibration"]["summaries"]
        if row["missing"] == row["modality"]
    ]


def _facts(
    config: Config,
    trained: TrainedModel,
    evaluation_facts: dict,
    split: dict[str, list[str]],
    entries: Sequence[dict],
) -> dict:
    """What a reader needs to know of a study, and to repeat it."""
    # The config of the training, but for what is evaluated now.
    fields, given = (build.config_to_json(c) for c in (trained.config, config))
    fields |= {section: given[section] for section in ("evaluate", "study")}
    return {
        "budget": _budget(entries, fields["missingness"]["patterns_per_image"]),
        "profile": evaluation_facts["profile"],
        "profile_hash": evaluation_facts["profile_hash"],
        "seed": fields["seed"],
        "modalities": list(trained.space.modalities),
        "split": {name: len(members) for name, members in split.items()},
        "split_sha256": digest(split),
        "data_sha256": trained.data,
        "parameters_sha256": trained.digest,
        "config": fields,
        "versions": versions(),
        "commit": commit(),
        "notes": study_notes(evaluation_facts, fields["network"]["neighbour_slices"]),
    }


def _budget(entries: Sequence[dict], patterns_per_image: int) -> str:
    """What each method was trained with, in one sentence."""
    costs = {entry["title"]: entry["costs"] for entry in entries if entry["costs"] is not None}
    seen = {cost["images_seen"] for cost in costs.values()}
    if len(seen) == 1:
        several = "s"[: patterns_per_image > 1]
        return (
            f"Every trained method saw the same number of images, {seen.pop()}, the "
            f"mm-CSN and regression {patterns_per_image} missing pattern{several} of each."
        )
    parts = [
        f"{title} {cost['images_seen']} images in {_seconds(cost['train_seconds'])}"
        for title, cost in costs.items()
    ]
    return "Methods saw different numbers of images: " + ", ".join(parts) + "."


def _seconds(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds:.0f} s"


def study_notes(evaluation_facts: dict, neighbours: int) -> list[str]:
    """What a reader needs to know of the study's table, a note each."""
    notes = []
    if neighbours:
        notes.append(
            "The mm-CSN and regression see the neighbours of the slice that they predict, "
            f"up to {neighbours} away; the published methods see that slice alone."
        )
    return [
        *notes,
        f"Test subjects: {evaluation_facts['test_subjects']}. Every method is given the "
        "truth's own intensity scale and brain mask.",
        "mm-CSN draws are of the network whose mean is the row above them, after "
        f"{evaluation_facts['few']} further evaluations; a draw that is right has 3 dB less PSNR "
        "than the mean. Their CRPS is the fair one of all draws of a pattern: that of "
        "as many draws as one likes.",
        "Differences are the mm-CSN mean minus the method, p of Wilcoxon's signed-rank "
        "test over subjects, corrected by Holm for all methods and modalities of a "
        "metric.",
    ]


def _galleries(
    spec: EvaluationSpec, mm_csn: TrainedMethod, methods: Sequence[TrainedMethod], results: Results
) -> dict[str, dict[str, Array]]:
    """By shown subject: the slices `z` and [M, S, H, W] uint8 grey levels of the truth and
    of the trained methods, a draw and the sd of the mm-CSN."""
    galleries = {}
    for subject in spec.subjects:
        gallery = dict(results[mm_csn.name][subject.name].arrays.get("gallery", {}))
        for method in methods:
            images = results[method.name][subject.name].arrays.get("gallery", {})
            gallery |= {name: images[name] for name in images if name == method.name}
        if gallery:
            galleries[subject.name] = gallery
    return galleries


def _panels(study: dict, galleries: dict[str, dict[str, Array]]) -> Panels | None:
    """Figure 2: the middle slice of each shown subject, and each method's prediction; None
    where there is nothing that all of them have."""

    def middles(name: str) -> Array:
        stacks = [gallery[name] for gallery in galleries.values()]
        return np.stack([stack[:, stack.shape[1] // 2] for stack in stacks]).astype(float)

    estimates = {
        method["title"]: middles(method["name"])
        for method in study["methods"]
        if galleries and all(method["name"] in gallery for gallery in galleries.values())
    }
    if not estimates:
        return None
    modalities = tuple(study["facts"]["modalities"])
    return Panels(tuple(galleries), modalities, middles("truth"), estimates)


def _write(folder: pathlib.Path, study: dict, galleries: dict) -> None:
    """The tables are the same for the same seed; results.json has times too."""
    for name, gallery in galleries.items():
        content = io.BytesIO()
        np.savez_compressed(content, **gallery)
        write_atomic(folder / "gallery" / f"{name}.npz", content.getvalue())
    for name, (key, columns) in TABLES.items():
        write_csv(folder / f"{name}.csv", study[key], columns)
    panels = _panels(study, galleries)
    if panels is None:
        (folder / "figure.png").unlink(missing_ok=True)
    else:
        write_figure(folder / "figure.png", panels)
    write_atomic(folder / "results.json", json.dumps(json_without_nan(study), indent=1))
