"""Reads what a study left in its workdir.

`study/results.json` must be there; anything else that is absent is left out of the report.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ummcsgm.types import Array, InputError
from ummcsgm.utils.atomic_io import read_json

Rows = list[dict[str, Any]]
NETWORK = "mm-csn"  # the method whose log lies in the workdir itself
SEGMENTER = "segmenter"  # not a method of completion, but it has a log
NUMBERS = "mean sd dice difference low high p p_holm".split()
PICTURES = {
    "reliability.png": "Reliability of draws: error over predicted spread",
    "reliability_predicted.png": "Reliability of the variance the network predicts",
    "ranks.png": "Rank histograms of the truth among draws",
    "structure.png": "Draws against truths by scale: power, and the spread of block means",
    "lesions.png": "Lesions: P(it enhances), and their 90th percentile in truths and draws",
    "two_sample.png": "The patches by which a classifier tells draws from truths",
    "uncertainty.png": "Draws, their standard deviation and the error of their mean",
    "coherence.png": "A coronal plane through neighbouring slices of draws",
}


@dataclass(frozen=True)
class StudyResults:
    """Everything a report shows of one workdir.

    Rows are those of results.json, with NaN where a number is null. `galleries` has a file for each
    subject, `logs` points [n, 2] of step and loss for each method, `pictures` the calibration PNGs
    with their captions; `figure` is the Figure 2 of one slice.
    """

    name: str
    methods: Rows
    rows: Rows
    crps: Rows = field(default_factory=list)
    structure: Rows = field(default_factory=list)
    lesions: dict[str, Any] = field(default_factory=dict)
    two_sample: Rows = field(default_factory=list)
    tests: Rows = field(default_factory=list)
    paper: Rows = field(default_factory=list)
    downstream: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    galleries: dict[str, Path] = field(default_factory=dict)
    logs: dict[str, Array] = field(default_factory=dict)
    pictures: dict[Path, str] = field(default_factory=dict)
    dial: Path | None = None
    figure: Path | None = None

    def titles(self) -> dict[str, str]:
        """The printed name of each method, in the order of tables."""
        return {method["name"]: method.get("title", method["name"]) for method in self.methods}

    def training_titles(self) -> dict[str, str]:
        """The printed name of each training: that of the network is "mm-CSN"."""
        return self.titles() | {NETWORK: "mm-CSN"}


def read_studies(workdirs: list[Path]) -> list[StudyResults]:
    """The studies, named by as many of their last folders as tell them apart.

    Raises:
        InputError: two are the same folder, or one holds no study.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise InputError("--mode compare is given one folder twice: name each once.")
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(folders[-depth:]) for folders in parts]
        if len(set(names)) == len(names):
            break
    return [read_study(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]


def read_study(workdir: Path, name: str = "") -> StudyResults:
    """The results of the study in `workdir`; its name is the folder's by default.

    Raises:
        InputError: there is no study, or its results are damaged.
    """
    path = workdir / "study" / "results.json"
    if not path.is_file():
        raise InputError(f"{workdir} holds no study/results.json: run --mode study.")
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("rows"), list):
        raise InputError(f"{path} is not what a study writes; run --mode study again.")
    methods = results.get("methods", [])
    trained = [method["name"] for method in methods]
    downstream = results.get("downstream") or {}
    if downstream:
        trained.append(SEGMENTER)
    if downstream.get("rows"):
        downstream["rows"] = _with_nan(downstream["rows"])
    pictures = {workdir / "evaluation" / file: words for file, words in PICTURES.items()}
    figures = path.parent / "figure.png", workdir / "evaluation" / "figure.png"
    dial = workdir / "dial" / "dial.png"
    return StudyResults(
        name=name or workdir.resolve().name,
        methods=methods,
        rows=_with_nan(results["rows"]),
        crps=_with_nan(results.get("crps", [])),
        structure=results.get("structure", []),
        lesions=results.get("lesions") or {},
        two_sample=results.get("two_sample", []),
        tests=_with_nan(results.get("tests", [])),
        paper=_with_nan(results.get("paper", [])),
        downstream=downstream if downstream.get("rows") else None,
        facts=results.get("facts", {}),
        galleries={p.stem: p for p in sorted((path.parent / "gallery").glob("*.npz"))},
        logs=_logs(workdir, trained),
        pictures={file: words for file, words in pictures.items() if file.is_file()},
        dial=dial if dial.is_file() else None,
        figure=next((file for file in figures if file.is_file()), None),
    )


def _with_nan(rows: Rows) -> Rows:
    """`rows` with NaN where a number is null."""
    return [
        row | {key: math.nan for key in NUMBERS if key in row and row[key] is None} for row in rows
    ]


def _logs(workdir: Path, names: list[str]) -> dict[str, Array]:
    """Steps and losses [n, 2] of those of `names` that have any, in their order."""
    folders = {name: workdir / "methods" / name for name in names} | {NETWORK: workdir}
    logs = {name: _read_log(folder / "log.jsonl") for name, folder in folders.items()}
    return {name: points for name, points in logs.items() if len(points)}


def _read_log(path: Path) -> Array:
    """[n, 2] steps and losses of a log; a line that has none is skipped."""
    points = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            points.append((float(record["step"]), float(record["loss"])))
        except (ValueError, KeyError, TypeError):
            continue
    found = np.array(points, float).reshape(-1, 2)
    return found[np.isfinite(found).all(axis=1)]
