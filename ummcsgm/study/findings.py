"""What a study found: the marks of all methods as the rows of its tables."""

import dataclasses
from collections.abc import Sequence

from ummcsgm.config import build
from ummcsgm.config.build_methods import MM_CSN
from ummcsgm.evaluation.ensemble import SAMPLER
from ummcsgm.evaluation.evaluate import summary
from ummcsgm.evaluation.marks import digest_of
from ummcsgm.evaluation.metrics import mean_and_sd
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.study.significance import compare, correct
from ummcsgm.types import Config
from ummcsgm.utils.atomic_io import json_without_nan
from ummcsgm.utils.provenance import commit, versions

# What the mm-CSN's evaluation calls its answers, and the study.
OWN = {"mean": MM_CSN, SAMPLER: SAMPLER, "algorithm1": "algorithm1"}
OWN |= {"ridge2": "ridge2", "ridge": "ridge"}
DRAWS = (SAMPLER, "algorithm1")
FLOOR = "Ours: voxel by voxel, no network."


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the study knows of one method."""

    name: str
    title: str
    note: str
    costs: dict | None
    rows: list[dict]  # of subjects


def own_findings(measured: dict, costs: dict) -> list[Findings]:
    """The mm-CSN's mean and draws, and the floors, in the order of the table; `costs`
    are the mean's."""
    few, steps = measured["facts"]["few"], measured["facts"]["evaluations"]
    told = {
        MM_CSN: ("mm-CSN mean, 1 evaluation", "", costs),
        SAMPLER: (f"mm-CSN draw, 1 + {few} evaluations", "One draw of each.", None),
        "algorithm1": (f"mm-CSN Algorithm 1, {steps} evaluations", "One draw.", None),
        "ridge2": ("ridge, quadratic (floor)", FLOOR, None),
        "ridge": ("ridge, linear (floor)", FLOOR, None),
    }
    rows = {own: [] for own in told}
    for row in measured["subjects"]:
        if row["method"] in OWN:
            own = OWN[row["method"]]
            rows[own].append(row | {"method": own})
    slices = {own: sum(row["slices"] for row in rows[own]) for own in told}
    found = [Findings(own, *told[own], rows[own]) for own in told if rows[own]]
    return [
        dataclasses.replace(own, note=f"{own.note} {_some(slices, own.name)}".strip())
        for own in found
    ]


def _some(slices: dict[str, int], name: str) -> str:
    if slices[name] == slices[MM_CSN]:
        return ""
    return (
        f"On {slices[name]} answers of the other rows' {slices[MM_CSN]}: its numbers, "
        "but for the CRPS, are not to be compared with theirs."
    )


def results_of(findings: list[Findings], modalities: Sequence[str], facts: dict) -> dict:
    """results.json of a study, but for what the config adds.

    Tests compare the mm-CSN's mean with every method that is no draw.
    """
    subjects = [row for own in findings for row in own.rows]
    names = [own.name for own in findings]
    others = [name for name in names if name not in (MM_CSN, *DRAWS)]
    tests = [row for m in modalities for row in compare(subjects, MM_CSN, others, m)]
    return {
        "methods": [
            {"name": o.name, "title": o.title, "note": o.note, "costs": o.costs} for o in findings
        ],
        "rows": summary(subjects, names),
        "subjects": subjects,
        "crps": _crps(subjects, names, modalities),
        "tests": correct(tests),
        "downstream": None,
        "facts": facts,
    }


def _crps(subjects: Sequence[dict], names: Sequence[str], modalities: Sequence[str]) -> list[dict]:
    """Means over subjects, a row a method and modality that alone is missing."""
    rows = []
    for name in names:
        for modality in modalities:
            values = [
                row["crps"]
                for row in subjects
                if row["method"] == name and row["crps"] is not None
                if row["missing"] == row["modality"] == modality
            ]
            if values:
                facts = {"method": name, "modality": modality}
                rows.append(facts | json_without_nan(mean_and_sd(values)))
    return rows


def facts_of(
    config: Config,
    trained: TrainedModel,
    measured: dict,
    split: dict[str, list[str]],
    findings: list[Findings],
) -> dict:
    """What a reader needs to know of a study, and to repeat it."""
    asked = build.config_to_json(config)
    # Trained with its own config, whatever is asked now: evaluate and study alone are.
    fields = build.config_to_json(trained.config)
    fields |= {section: asked[section] for section in ("evaluate", "study")}
    return {
        "budget": _budget(findings, fields["missingness"]["patterns_per_image"]),
        "profile": measured["facts"]["profile"],
        "profile_hash": measured["facts"]["profile_hash"],
        "seed": fields["seed"],
        "modalities": list(trained.space.modalities),
        "split": {name: len(members) for name, members in split.items()},
        "split_sha256": digest_of(split),
        "data_sha256": trained.data,
        "parameters_sha256": trained.digest,
        "config": fields,
        "versions": versions(),
        "commit": commit(),
        "notes": notes(measured["facts"], fields["network"]["neighbour_slices"]),
    }


def _seconds(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{seconds:.0f} s"


def _budget(findings: list[Findings], each: int) -> str:
    """What each method was given, in one sentence."""
    costs = {own.title: own.costs for own in findings if own.costs is not None}
    seen = {own["images_seen"] for own in costs.values()}
    if len(seen) == 1:
        return (
            f"Every trained method saw the same number of images, {seen.pop()}, the "
            f"mm-CSN and regression {each} question{'s'[: each > 1]} of each."
        )
    told = [
        f"{title} {own['images_seen']} images in {_seconds(own['train_seconds'])}"
        for title, own in costs.items()
    ]
    return "Methods saw different numbers of images: " + ", ".join(told) + "."


def notes(facts: dict, neighbours: int) -> list[str]:
    """What a reader is to know of the table, by the `facts` of the evaluation."""
    around = (
        "The mm-CSN and regression see the neighbours of the slice that they answer "
        f"for, up to {neighbours} away; the published methods, that slice alone."
    )
    return [around] * (neighbours > 0) + [
        f"Test subjects: {facts['test_subjects']}. Every method is given the "
        "truth's own intensity scale and brain mask.",
        "mm-CSN draws are of the network whose mean is the row above them, after "
        f"{facts['few']} further evaluations; a draw that is right has 3 dB less PSNR "
        "than the mean. Their CRPS is the fair one of all draws of a question: that of "
        "as many draws as one likes.",
        "Differences are the mm-CSN mean minus the method, p of Wilcoxon's signed-rank "
        "test over subjects, corrected by Holm for all methods and modalities of a "
        "metric.",
    ]
