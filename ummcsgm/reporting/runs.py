"""What a study left in its workdir, read for its report.

`study/results.json` must be there; whatever else is absent is simply not in the run.
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
JUDGE = "segmenter"  # no method, but it has a log, too
NUMBERS = "mean sd dice difference low high p p_holm".split()
PICTURES = {
    "reliability.png": "Reliability of draws: error over predicted spread",
    "reliability_recalibrated.png": "The same after recalibration",
    "reliability_predicted.png": "Reliability of the variance the network predicts",
    "ranks.png": "Rank histograms of the truth among draws",
    "ranks_recalibrated.png": "The same after recalibration",
    "uncertainty.png": "Draws, their standard deviation and the error of their mean",
    "coherence.png": "A coronal plane through neighbouring slices of draws",
}


@dataclass(frozen=True)
class Run:
    """Everything a report shows of one workdir.

    Rows are as results.json has them, numbers that JSON lacks as NaN. `galleries` has a
    file a subject, `logs` points [n, 2] of step and loss a method, `pictures` the PNGs
    of calibration with their words.
    """

    name: str
    methods: Rows
    rows: Rows
    crps: Rows
    tests: Rows
    paper: Rows
    downstream: dict[str, Any] | None
    facts: dict[str, Any]
    galleries: dict[str, Path] = field(default_factory=dict)
    logs: dict[str, Array] = field(default_factory=dict)
    pictures: dict[Path, str] = field(default_factory=dict)
    dial: Path | None = None
    still: Path | None = None

    def titles(self) -> dict[str, str]:
        """What a reader is shown for each method, in the order of tables."""
        return {each["name"]: each.get("title", each["name"]) for each in self.methods}

    def trained(self) -> dict[str, str]:
        """The same for what has a log: however the network answers, it is one."""
        return self.titles() | {NETWORK: "mm-CSN"}


def read_runs(workdirs: list[Path]) -> list[Run]:
    """The runs, under names that tell them apart.

    Raises:
        InputError: two are the same folder, or one holds no study.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise InputError("--mode compare is given one folder twice: name each once.")
    parts = [workdir.resolve().parts for workdir in workdirs]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            break
    pairs = zip(workdirs, names, strict=True) if workdirs else ()
    return [read_run(workdir, name) for workdir, name in pairs]


def read_run(workdir: Path, name: str = "") -> Run:
    """What the study in `workdir` left there, under the folder's name if no other.

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
    judge = [JUDGE] if results.get("downstream") else []
    return Run(
        name=name or workdir.resolve().name,
        methods=methods,
        rows=_numbers(results["rows"]),
        crps=_numbers(results.get("crps", [])),
        tests=_numbers(results.get("tests", [])),
        paper=_numbers(results.get("paper", [])),
        downstream=_downstream(results.get("downstream")),
        facts=results.get("facts", {}),
        galleries={p.stem: p for p in sorted((path.parent / "gallery").glob("*.npz"))},
        logs=_logs(workdir, [method["name"] for method in methods] + judge),
        pictures=_pictures(workdir / "evaluation"),
        dial=_file(workdir / "dial" / "dial.png"),
        still=_file(path.parent / "figure.png") or _file(workdir / "evaluation" / "figure.png"),
    )


def _numbers(rows: Rows) -> Rows:
    """`rows` with NaN where a number is not known."""
    return [
        row | {key: math.nan for key in NUMBERS if key in row and row[key] is None} for row in rows
    ]


def _downstream(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if not found or not found.get("rows"):
        return None
    return found | {"rows": _numbers(found["rows"])}


def _pictures(folder: Path) -> dict[Path, str]:
    found = {folder / name: words for name, words in PICTURES.items()}
    return {path: words for path, words in found.items() if path.is_file()}


def _file(path: Path) -> Path | None:
    return path if path.is_file() else None


def _logs(workdir: Path, names: list[str]) -> dict[str, Array]:
    """Step and loss of those of `names` that were trained, in their order."""
    folders = {name: workdir / "methods" / name for name in names}
    folders[NETWORK] = workdir
    logs = {name: _points(folder / "log.jsonl") for name, folder in folders.items()}
    return {name: points for name, points in logs.items() if len(points)}


def _points(path: Path) -> Array:
    """[n, 2] steps and losses of a log; a line without is skipped."""
    points = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            points.append((float(record["step"]), float(record["loss"])))
        except (ValueError, KeyError, TypeError):
            continue
    found = np.array(points, float).reshape(-1, 2)
    return found[np.isfinite(found).all(axis=1)]
