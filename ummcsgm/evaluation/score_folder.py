"""The command `score`: a folder of predictions against the truth under every profile.

A prediction is matched with its truth by its path below its folder, which is the
truth's or the one that `complete` writes; else by its file name, which is the truth's or
SUBJECT-MODALITY or SUBJECT_MODALITY with any name of the contrast, in any folder. Case
does not count, nor whether it is `.nii` or `.nii.gz`. The suffixes of `complete` for
several results, like `_mean` or `_draw-03`, are its kind.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ummcsgm.config import build_data
from ummcsgm.data.layouts.find import SearchResult, file_name, find_subjects
from ummcsgm.data.layouts.known import named_layouts
from ummcsgm.data.layouts.layout import CONTRASTS, Layout, Subject, contrast_of
from ummcsgm.evaluation.metrics import mean_and_sd
from ummcsgm.evaluation.protocols import PROFILES
from ummcsgm.evaluation.score_subject import Prediction, Scores, score_subject
from ummcsgm.reporting.document import Bullets, Document, write_markdown
from ummcsgm.reporting.tables import Table, write_csv
from ummcsgm.types import Config, InputError
from ummcsgm.utils.atomic_io import json_without_nan, write_atomic
from ummcsgm.utils.pool import map_in_processes
from ummcsgm.utils.progress import print_table, progress_bar

COLUMNS = "subject modality kind profile profile_hash metric value".split()
TABLE_COLUMNS = ("modality", "profile", "hash", "scores", "subjects", "skipped")
KINDS = re.compile(r"(.+)_(mean|draw-\d+|sd|q\d+(?:p\d+)?)")
NO_IMAGE = ""  # in place of a modality: a segmentation or a mask
Image = tuple[str, str]  # subject and modality
ImagesByPath = dict[str, set[Image]]


def score_folder(config: Config | None, folders: tuple[str | None, str | None, str | None]) -> bool:
    """Prints the scores of predictions under every profile, and returns whether all of
    them were matched and scored.

    `folders` are those of the predictions and of the truth, and the one in which the
    scores are written, if any.

    Raises:
        InputError: a folder is missing, both are the same, or nothing could be scored.
    """
    folder, truth = _folder("predictions", folders[0]), _folder("truth", folders[1])
    if folder.resolve() == truth.resolve():
        raise InputError("--predictions and --truth are the same folder.")
    if config is None:
        found = find_subjects(truth, named_layouts())
    else:
        found = build_data.find_anywhere(config, truth)
    matches = match_predictions(found, truth, folder)
    processes = os.cpu_count() if config is None else build_data.build_processes(config)
    scores = _score_all(found, matches.predictions, processes)
    problems = [f"{reason}." for reason in found.problems.values()]
    scores.failures = [*matches.unmatched, *problems, *scores.failures]
    notes = _notes(found, matches, scores)
    for sentence in [*scores.failures, *notes]:
        print(sentence, flush=True)
    if not scores.rows:
        raise InputError(
            f"nothing to score: no prediction in {folder} could be compared with a scan in {truth}."
        )
    summary = summarise(scores.rows, scores.skipped)
    print_table(f"Scores of {folder}", TABLE_COLUMNS, _table_rows(summary))
    if folders[2]:
        write_scores(Path(folders[2]), scores, summary, notes)
    return not scores.failures


def _folder(flag: str, value: str | None) -> Path:
    if not value:
        raise InputError(f"--{flag} is missing: name a folder of NIfTI files.")
    if not Path(value).is_dir():
        raise InputError(f"--{flag} is {value!r}: there is no such folder.")
    return Path(value)


def _score_all(found: SearchResult, predictions: Sequence[Prediction], processes: int) -> Scores:
    by_subject: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_subject.setdefault(prediction.subject, []).append(prediction)
    predicted = [subject for subject in found.subjects if subject.name in by_subject]
    jobs = [(subject, tuple(by_subject[subject.name])) for subject in predicted]
    scores, work = Scores(), partial(score_subject, bool(found.layout.mask))
    with progress_bar("scoring") if jobs else contextlib.nullcontext() as report:
        for done, of_subject in enumerate(map_in_processes(work, jobs, processes), start=1):
            report(done, len(jobs))
            scores.add(of_subject)
    return scores


def _notes(found: SearchResult, matches: Matches, scores: Scores) -> list[str]:
    """Sentences about what is not scored and is no failure."""
    predicted = {prediction.subject for prediction in matches.predictions}
    names = [subject.name for subject in found.subjects if subject.name not in predicted]
    notes = []
    if names:
        some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        notes.append(f"no prediction for {len(names)} of {len(found.subjects)} subjects: {some}.")
    if scores.copies:
        notes.append(
            f"not scored: {len(scores.copies)} files that are the scan itself, voxel for"
            f" voxel, such as {scores.copies[0]}."
        )
    if matches.others:
        notes.append(
            f"not scored: {len(matches.others)} files that are maps of uncertainty, "
            f"segmentations or masks, such as {matches.others[0]}."
        )
    return notes


# Matching


@dataclass(frozen=True)
class Matches:
    """The predictions in a folder.

    `unmatched` has a sentence for each file that matches nothing or is one of two
    predictions of the same scan; `others` are the files that are no images to compare:
    maps of uncertainty (_sd, _q05), segmentations and masks.
    """

    predictions: tuple[Prediction, ...]
    unmatched: tuple[str, ...]
    others: tuple[Path, ...]


def match_predictions(found: SearchResult, truth: Path, folder: Path) -> Matches:
    """The NIfTI files below `folder` matched with the scans `found` in `truth`, in the
    order of their paths."""
    paths, names = _images_by_path_and_name(found, truth)
    matched: dict[tuple[Image, str], list[Path]] = {}
    unmatched, others = [], []
    for path in _nifti_files(folder):
        images, kind = _match(path.relative_to(folder), paths, names)
        if len(images) != 1:
            unmatched.append(_reason(path, images, truth))
        elif images[0][1] == NO_IMAGE or kind == "sd" or kind.startswith("q"):
            others.append(path)
        else:
            matched.setdefault((images[0], kind), []).append(path)
    predictions = []
    for ((subject, modality), kind), same in matched.items():
        if len(same) > 1:
            unmatched.append(
                f"{same[0]} and {same[1]} both predict {modality} of {subject}: keep one of them."
            )
        else:
            predictions.append(Prediction(same[0], subject, modality, kind))
    return Matches(tuple(predictions), tuple(unmatched), tuple(others))


def _images_by_path_and_name(found: SearchResult, truth: Path) -> tuple[ImagesByPath, ImagesByPath]:
    """The images that a path below the folder, and that a file name, may stand for."""
    paths: ImagesByPath = {}
    names: ImagesByPath = {}
    for subject in found.subjects:
        for modality, files, words in _scans(found.layout, subject):
            image = (subject.name, modality)
            for path in files:
                if path.is_absolute():
                    path = path.relative_to(os.path.abspath(truth))
                paths.setdefault(_stem(path), set()).add(image)
                names.setdefault(_stem(Path(path.name)), set()).add(image)
            for word in words:
                for joint in "-_":
                    name = f"{subject.name}{joint}{word}".casefold()
                    names.setdefault(name, set()).add(image)
    return paths, names


def _scans(layout: Layout, subject: Subject) -> list[tuple[str, list[Path], tuple[str, ...]]]:
    """The modalities of the subject, each with its possible paths and names."""
    scans = []
    for modality, path in subject.files.items():
        files = [file_name(layout, subject, modality)]
        if modality not in subject.volume_indices:  # a 4-D file belongs to all its modalities
            files.append(path)
        contrast = contrast_of(modality)
        known = CONTRASTS[contrast] if contrast else ()
        scans.append((modality, files, (modality, layout.suffixes[modality], *known)))
    others = [path for path in (subject.segmentation, subject.mask) if path]
    return [*scans, (NO_IMAGE, others, ())]


def _match(path: Path, paths: ImagesByPath, names: ImagesByPath) -> tuple[list[Image], str]:
    """The images that the file at `path` may predict, and its kind."""
    stem = _stem(path)
    with_kind = KINDS.fullmatch(stem)
    for base, kind in [(stem, ""), *([with_kind.groups()] if with_kind else [])]:
        images = paths.get(base, names.get(base.rsplit("/", 1)[-1], set()))
        if images:
            return sorted(images), kind
    return [], ""


def _nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files at any depth below `folder`, without hidden ones."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(path, name)
            for name in sorted(files)
            if name.endswith((".nii", ".nii.gz")) and not name.startswith(".")
        ]
    return found


def _stem(path: Path) -> str:
    return path.as_posix().removesuffix(".gz").removesuffix(".nii").casefold()


def _reason(path: Path, images: list[Image], truth: Path) -> str:
    if not images:
        return f"{path}: no scan in {truth} has this path or this name."
    several = " and ".join(f"{modality or 'a mask'} of {subject}" for subject, modality in images)
    return f"{path}: its name is that of {several}: give it its truth's path."


# Tables


def summarise(rows: list[dict], skipped: list[dict]) -> list[dict]:
    """A row for each kind, modality, profile and metric: mean and sd over subjects,
    their number, and the number of skipped subjects by reason.

    The mean of a subject's draws counts as its value; their kind is then "draw".
    """
    values: dict[tuple, dict[str, list[float]]] = {}
    reasons: dict[tuple, dict[str, str]] = {}
    for row in [*rows, *skipped]:
        values.setdefault(_group(row), {})
    for row in rows:
        values[_group(row)].setdefault(row["subject"], []).append(row["value"])
    for row in skipped:
        reasons.setdefault(_group(row), {})[row["subject"]] = row["reason"]
    columns = ("kind", "modality", "profile", "profile_hash", "metric")
    return [
        {
            **dict(zip(columns, group, strict=True)),
            **mean_and_sd([float(np.mean(draws)) for draws in by_subject.values()]),
            "skipped": dict(collections.Counter(reasons.get(group, {}).values())),
        }
        for group, by_subject in sorted(values.items(), key=lambda item: _order(item[0]))
    ]


def write_scores(folder: Path, scores: Scores, summary: list[dict], notes: list[str]) -> None:
    """Writes scores.csv with a row for each subject and metric, scores.md with the
    summary, and scores.json with everything to `folder`."""
    content = {
        "summary": summary,
        "rows": scores.rows,
        "skipped": scores.skipped,
        "failures": scores.failures,
        "notes": notes,
        "profiles": {profile.name: profile.text for profile in PROFILES},
    }
    text = json.dumps(json_without_nan(content, str), indent=1)
    write_atomic(folder / "scores.json", text)
    write_csv(folder / "scores.csv", scores.rows, COLUMNS)
    blocks = (
        Table("", TABLE_COLUMNS, _table_rows(summary), label_columns=len(TABLE_COLUMNS)),
        Bullets((*scores.failures, *notes)),
        Bullets(tuple(f"{profile.name}: {profile.text}" for profile in PROFILES)),
    )
    write_markdown(folder / "scores.md", Document("Scores", blocks))


def _group(row: dict) -> tuple:
    kind = "draw" if row["kind"].startswith("draw-") else row["kind"]
    return (kind, row["modality"], row["profile"], row["profile_hash"], row["metric"])


def _order(group: tuple) -> tuple:
    """Kinds and modalities by name, profiles and metrics in their own order."""
    kind, modality, name, _, metric = group
    index = [profile.name for profile in PROFILES].index(name)
    metrics = [measure.name for measure in PROFILES[index].measures]
    return kind, modality, index, metrics.index(metric)


def _table_rows(summary: list[dict]) -> list[list[str]]:
    """The cells under TABLE_COLUMNS: a row for all metrics of a profile."""
    groups: dict[tuple, list[dict]] = {}
    for row in summary:
        key = (row["kind"], row["modality"], row["profile"], row["profile_hash"])
        groups.setdefault(key, []).append(row)
    return [
        [
            f"{modality} {kind}".strip(),
            profile,
            hash_of_profile,
            ", ".join(_mean_and_sd_text(row) for row in rows if row["subjects"]),
            str(max(row["subjects"] for row in rows)),
            "; ".join(_skipped_text(rows)),
        ]
        for (kind, modality, profile, hash_of_profile), rows in groups.items()
    ]


def _mean_and_sd_text(row: dict) -> str:
    digits = 2 if row["metric"] in ("psnr", "mae") else 4
    sd = f" ± {row['sd']:.{digits}f}" if math.isfinite(row["sd"]) else ""
    return f"{row['metric']} {row['mean']:.{digits}f}{sd}"


def _skipped_text(rows: list[dict]) -> list[str]:
    """The numbers of skipped subjects, the reasons, and the metrics if not all."""
    found: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        for reason, count in row["skipped"].items():
            found.setdefault((reason, count), []).append(row["metric"])
    return [
        f"{count} {reason}" + f" ({', '.join(metrics)})" * (len(metrics) < len(rows))
        for (reason, count), metrics in found.items()
    ]
