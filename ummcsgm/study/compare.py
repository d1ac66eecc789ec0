"""The study's end: every method that was trained, asked the same, set beside others.

Methods whose folders were copied into the workdir count as those trained there.
WORKDIR/study holds what comes of it.
"""

import io
import json
import pathlib

import numpy as np

from ummcsgm.config import build, build_data
from ummcsgm.config.build_methods import MM_CSN, build_gallery, build_method_names, build_paper
from ummcsgm.config.courses import SEGMENTER, fixed_keys, method_config, method_folder
from ummcsgm.config.schema import check_same
from ummcsgm.data.cohort import Cohort
from ummcsgm.diffusion.missingness import missing_patterns
from ummcsgm.distributed import devices
from ummcsgm.evaluation.contest import Contest, enter, exhibit
from ummcsgm.evaluation.evaluate import evaluate, interleaved
from ummcsgm.inference.predictor import TrainedModel, load_trained_model
from ummcsgm.reporting import page
from ummcsgm.reporting.evaluation_report import SCORE_COLUMNS, SUBJECT_COLUMNS, write_evaluation
from ummcsgm.reporting.figures import Panels, write_figure
from ummcsgm.reporting.tables import write_csv
from ummcsgm.study.costs import costs_of, measure
from ummcsgm.study.findings import Findings, facts_of, own_findings, results_of
from ummcsgm.study.rivals import load_rival, mm_csn_mean
from ummcsgm.study.usefulness import downstream_of
from ummcsgm.training import checkpoint
from ummcsgm.types import Array, Config, InputError
from ummcsgm.utils.atomic_io import json_without_nan, write_atomic

TESTED = ("difference", "low", "high", "p", "p_holm")
TABLES = {  # in WORKDIR/study: the results they hold, and their columns
    "table": ("rows", SCORE_COLUMNS),
    "subjects": ("subjects", [*SUBJECT_COLUMNS, "crps"]),
    "crps": ("crps", ("method", "modality", "mean", "sd", "subjects")),
    "significance": ("tests", (*"metric modality method reference subjects".split(), *TESTED)),
}


def conclude(workdir: pathlib.Path, config: Config | None, all_configurations: bool) -> None:
    """WORKDIR/evaluation holds what `write_evaluation` writes of the mm-CSN's evaluation,
    WORKDIR/study results.json, its tables and galleries, of all methods that have been
    trained there.

    Raises:
        InputError: as `evaluate`; or a method was trained on other slices than the
            mm-CSN.
    """
    trained = load_trained_model(workdir)
    config = build_data.compatible_config(config, trained.config, workdir)
    judge = (SEGMENTER,) if build.build_downstream(config) else ()
    for name in (*build_method_names(config), *judge):
        _check_fellow(method_folder(workdir, name), name, trained)
    measured, cohort = evaluate(workdir, config, all_configurations)
    if devices.is_main():
        write_evaluation(measured, workdir / "evaluation")
    contest = _contest(config, cohort, all_configurations)
    mean = mm_csn_mean(trained, MM_CSN, "mm-CSN mean, 1 evaluation", "")
    if devices.is_main():
        measure(workdir, mean, contest)
    findings = own_findings(measured, costs_of(workdir, mean))
    folder = workdir / "evaluation" / "parts" / "gallery"
    galleries = exhibit(folder, contest, trained)
    for name in build_method_names(config):
        place = method_folder(workdir, name)
        if checkpoint.latest_step(place) is None:
            print(f"study: {name} is not in {place} yet", flush=True)
            continue
        findings.append(_entered(place, contest, trained, galleries))
    useful = downstream_of(workdir, config, contest, trained)
    if devices.is_main():
        facts = facts_of(config, trained, measured, cohort.split, findings)
        results = results_of(findings, trained.space.modalities, facts)
        results |= {"paper": build_paper(config), "downstream": useful}
        _write(workdir / "study", results, galleries)
        page.write_report([workdir], workdir / "study")


def _contest(config: Config, cohort: Cohort, all_configurations: bool) -> Contest:
    """What every method is asked: the questions of the mm-CSN's evaluation."""
    space, scoring = build.build_space(config), build.build_evaluation_options(config)
    table = missing_patterns(len(space.modalities), proper=True)
    asked = table if all_configurations else table[table.sum(axis=1) == 1]
    subjects = [cohort.subjects[name] for name in interleaved(cohort, "test")]
    return Contest(space, scoring, asked, subjects, build_gallery(config))


def _check_fellow(place: pathlib.Path, name: str, trained: TrainedModel) -> None:
    """Raises InputError if the method that was trained in `place` was not given what
    the mm-CSN was."""
    if checkpoint.latest_step(place) is None:
        return
    about = checkpoint.restore_metadata(place)
    asked = trained.config if name == SEGMENTER else method_config(trained.config, name)
    own = build.config_to_json(asked)
    check_same(own, about["config"], str(place), fixed_keys(name))
    if about["data"] != trained.data:
        raise InputError(
            f"{place} was trained on other slices than the mm-CSN: remove it, and "
            "train it again with this workdir's config."
        )


def _entered(
    place: pathlib.Path, contest: Contest, trained: TrainedModel, galleries: dict
) -> Findings:
    """What the method of this place did, whose answers are put in the galleries."""
    rival = load_rival(place)
    marks = enter(place / "parts", contest, rival)
    if devices.is_main():
        measure(place, rival, contest)
    for subject, gallery in galleries.items():
        own = marks[subject].panels
        if own and np.array_equal(own["z"], gallery["z"]):
            gallery[rival.name] = own["answers"]
    rows = [row for own in marks.values() for row in own.rows]
    costs = costs_of(place, rival)
    return Findings(rival.name, rival.title, rival.note, costs, rows)


def _panels(results: dict, galleries: dict[str, dict[str, Array]]) -> Panels | None:
    """Figure 2: the middle slice of each shown subject, and each method's answer; None
    where the subjects' slices differ in what there is to show."""

    def middles(name: str) -> Array:
        stacks = [gallery[name] for gallery in galleries.values()]
        return np.stack([own[:, own.shape[1] // 2] for own in stacks]).astype(float)

    titles = {one["name"]: one["title"] for one in results["methods"]}
    titles = {
        name: title
        for name, title in titles.items()
        if galleries and all(name in gallery for gallery in galleries.values())
    }
    if not titles:
        return None
    estimates = {title: middles(name) for name, title in titles.items()}
    modalities = tuple(results["facts"]["modalities"])
    return Panels(tuple(galleries), modalities, middles("truth"), estimates)


def _write(folder: pathlib.Path, results: dict, galleries: dict) -> None:
    """The tables are the same for the same seed; results.json tells of times, too."""
    for name, gallery in galleries.items():
        content = io.BytesIO()
        np.savez_compressed(content, **gallery)
        write_atomic(folder / "gallery" / f"{name}.npz", content.getvalue())
    for name, (key, columns) in TABLES.items():
        write_csv(folder / f"{name}.csv", results[key], columns)
    shown = _panels(results, galleries)
    if shown is None:
        (folder / "figure.png").unlink(missing_ok=True)
    else:
        write_figure(folder / "figure.png", shown)
    write_atomic(folder / "results.json", json.dumps(json_without_nan(results), indent=1))
