"""The subjects of a run, and their split into train, validation and test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.layout import Layout, Subject
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Cohort:
    """The subjects of a run by name, and the names in train, validation and test.

    Each has two modalities or more; `left_out` names the subjects that have fewer.
    `unused_files` are the NIfTI files of the folder that belong to no subject.
    """

    subjects: dict[str, Subject]
    split: dict[str, list[str]]
    left_out: tuple[str, ...]
    unused_files: tuple[Path, ...]

    def members(self, split: str) -> list[Subject]:
        """The subjects of a split, in its order."""
        return [self.subjects[name] for name in self.split[split]]


def open_cohort(
    folder: Path, layouts: Sequence[Layout], split: Path, fractions: tuple[int, ...], seed: int
) -> Cohort:
    """The subjects in `folder` with two modalities or more, in the split of the file `split`.

    If there is no such file, the split is drawn by `seed` in proportion to `fractions` and
    written to it: scans of a test patient never become training subjects.

    Raises:
        InputError: a subject of `folder` is ambiguous, or a folder in it cannot be read; it
            has no such subject, or not the subjects of `split`; or no training subject has
            one of the modalities.
    """
    found = find_subjects(folder, layouts)
    for sentence in found.problems.values():
        raise InputError(sentence)
    subjects = {subject.name: subject for subject in found.subjects if len(subject.files) > 1}
    left_out = tuple(s.name for s in found.subjects if s.name not in subjects)
    if not subjects:
        raise InputError(
            f"{folder}: no subject has two of {', '.join(found.layout.modalities)}; "
            "training needs some to be seen and some to be missing"
        )
    if not split.is_file():
        patients = {name: subject.patient for name, subject in subjects.items()}
        write_atomic(split, json.dumps(split_subjects(patients, fractions, seed), indent=1))
    cohort = Cohort(subjects, _read_split(split), left_out, found.unused_files)
    _check(cohort, found.layout, split, folder)
    return cohort


def split_subjects(
    patients: Mapping[str, str], fractions: Sequence[int], seed: int
) -> dict[str, list[str]]:
    """The names of `patients`, {subject name: patient}, in train, validation and test.

    All scans of a patient go the same way. Of n patients, n f / sum(f) by rounding train and
    validate, and the rest is the test: (20, 1, 8) makes 231, 12 and 92 of the paper's 335. Train
    has one patient at least. Lists are sorted; the order of `patients` does not matter.

    Raises:
        InputError: there is no subject, or the fractions are not three whole numbers
            of which the first is above 0.
    """
    if not patients:
        raise InputError("there are no subjects to split")
    whole = all(isinstance(part, int) and part >= 0 for part in fractions)
    if len(fractions) != 3 or not whole or fractions[0] == 0:
        raise InputError(
            f"config.data.split is {tuple(fractions)}; wanted three whole numbers for "
            "train, validation and test, the first above 0"
        )
    names = sorted(set(patients.values()))
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = [names[index] for index in order]
    num_train = max(1, _round_share(len(names), fractions[0], sum(fractions)))
    validation_end = num_train + _round_share(len(names), fractions[1], sum(fractions))
    parts = {
        "train": set(shuffled[:num_train]),
        "validation": set(shuffled[num_train:validation_end]),
        "test": set(shuffled[validation_end:]),
    }
    return {
        split: sorted(name for name, patient in patients.items() if patient in part)
        for split, part in parts.items()
    }


def _round_share(count: int, part: int, total: int) -> int:
    """`count * part / total` to the nearest whole number, a half upwards."""
    return (2 * count * part + total) // (2 * total)


def _read_split(path: Path) -> dict[str, list[str]]:
    split = read_json(path)
    complete = isinstance(split, dict) and set(split) == set(SPLITS)
    if not complete or not all(isinstance(names, list) for names in split.values()):
        raise InputError(f"{path} is damaged: wanted lists of subjects for {', '.join(SPLITS)}")
    return split


def _check(cohort: Cohort, layout: Layout, split: Path, folder: Path) -> None:
    names = {name for names in cohort.split.values() for name in names}
    unmatched = names ^ set(cohort.subjects)
    if unmatched:
        raise InputError(
            f"{split} and {folder} disagree about subject {min(unmatched)}: use the "
            "folder it was made from, or a new --workdir."
        )
    if not cohort.split["train"]:
        raise InputError(f"{split} has no subject in train, wanted at least one")
    for modality in layout.modalities:
        if not any(modality in subject.files for subject in cohort.members("train")):
            raise InputError(
                f"none of the {len(cohort.split['train'])} training subjects of "
                f"{split} has {modality}: remove it from config.data.modalities, or "
                f"look at {folder} with --mode doctor"
            )
