"""The subjects of a run, and which of them train, validate and test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ummcsgm.data.layouts.naming import Layout, Subject
from ummcsgm.data.layouts.search import find_subjects
from ummcsgm.data.split import split_subjects
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Cohort:
    """The subjects of a run by name, and the names in train, validation and test.

    Each has two modalities or more; `left_out` names those that have fewer. `unread`
    are the NIfTI files of the folder that are nobody's (see `data.search.Found`).
    """

    subjects: dict[str, Subject]
    split: dict[str, list[str]]
    left_out: tuple[str, ...]
    unread: tuple[Path, ...]

    def members(self, split: str) -> list[Subject]:
        """The subjects of a split, in its order."""
        return [self.subjects[name] for name in self.split[split]]


def open_cohort(
    folder: Path, layouts: Sequence[Layout], split: Path, fractions: tuple[int, ...], seed: int
) -> Cohort:
    """The subjects in `folder` with two modalities or more, divided as `split` says.

    The division is drawn by `seed` in proportion to `fractions` the first time, and
    kept in that file: a run's test subjects never become training subjects, and neither
    do other scans of the same patients.

    Raises:
        InputError: a subject of `folder` is ambiguous, or a folder in it cannot be
            read; it has no such subject, or others than `split`; or a modality is in
            none of the training subjects.
    """
    found = find_subjects(folder, layouts)
    for sentence in found.refused.values():
        raise InputError(sentence)
    subjects = {one.name: one for one in found.subjects if len(one.files) > 1}
    left_out = tuple(one.name for one in found.subjects if len(one.files) < 2)
    if not subjects:
        raise InputError(
            f"{folder}: no subject has two of {', '.join(found.layout.words)}; "
            "training needs some to be seen and some to be missing"
        )
    if not split.is_file():
        patients = {name: one.patient for name, one in subjects.items()}
        drawn = split_subjects(patients, fractions, seed)
        write_atomic(split, json.dumps(drawn, indent=1))
    cohort = Cohort(subjects, _read_split(split), left_out, found.leftover)
    _check(cohort, found.layout, split, folder)
    return cohort


def _read_split(path: Path) -> dict[str, list[str]]:
    """The names of each split, as they were written."""
    division = read_json(path)
    whole = isinstance(division, dict) and set(division) == set(SPLITS)
    if not whole or not all(isinstance(names, list) for names in division.values()):
        raise InputError(f"{path} is damaged: wanted lists of subjects for {', '.join(SPLITS)}")
    return division


def _check(cohort: Cohort, layout: Layout, split: Path, folder: Path) -> None:
    names = {name for names in cohort.split.values() for name in names}
    strangers = names ^ set(cohort.subjects)
    if strangers:
        raise InputError(
            f"{split} and {folder} disagree about subject {min(strangers)}: use the "
            "folder it was made from, or a new --workdir."
        )
    if not cohort.split["train"]:
        raise InputError(f"{split} has no subject in train, wanted at least one")
    for modality in layout.words:
        if not any(modality in subject.files for subject in cohort.members("train")):
            raise InputError(
                f"none of the {len(cohort.split['train'])} training subjects of "
                f"{split} has {modality}: remove it from config.data.modalities, or "
                f"look at {folder} with --mode doctor"
            )
