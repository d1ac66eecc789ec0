"""The subjects of a run, and which of them train, validate and test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ummcsgm.data.layouts import Layout, Subject, find_subjects, require_all
from ummcsgm.data.split import split_subjects
from ummcsgm.files import read_json, write_whole
from ummcsgm.types import InputError


@dataclass(frozen=True)
class Cohort:
    """The subjects of a run by name, and the names in train, validation and test."""

    subjects: dict[str, Subject]
    split: dict[str, list[str]]


def open_cohort(
    folder: Path, layout: Layout, split: Path, fractions: tuple[int, ...], seed: int
) -> Cohort:
    """The subjects in `folder`, complete, divided as the file `split` says.

    The division is drawn by `seed` in proportion to `fractions` the first time, and
    kept in that file: a run's test subjects never become training subjects.

    Raises:
        InputError: `folder` lacks subjects or files, or has others than `split`.
    """
    found = find_subjects(folder, layout)
    require_all(found, layout)
    subjects = {subject.name: subject for subject in found}
    if not split.is_file():
        drawn = split_subjects(list(subjects), fractions, seed)
        write_whole(split, json.dumps(drawn, indent=1))
    division = read_json(split)
    if not division["train"]:
        raise InputError(f"{split} has no subject in train, wanted at least one")
    strangers = {name for names in division.values() for name in names} ^ set(subjects)
    if strangers:
        raise InputError(
            f"{split} and {folder} disagree about subject {min(strangers)}: use the "
            "folder it was made from, or a new --workdir."
        )
    return Cohort(subjects, division)
