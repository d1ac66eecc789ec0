"""The paper's split, the same each time, and each patient in one part."""

import random
from collections import Counter

import numpy as np
import pytest

from ummcsgm.data.cohort import split_subjects
from ummcsgm.types import InputError

PAPER = (20, 1, 8)


def names(count):
    return [f"subject{number:03d}" for number in range(count)]


def split(subjects, fractions=PAPER, seed=0):
    """The split where each subject is a patient."""
    return split_subjects({name: name for name in subjects}, fractions, seed)


def sizes(count, fractions=PAPER):
    return tuple(map(len, split(names(count), fractions).values()))


def scans(patients, most=4):
    """1 to `most` scans of each patient, in the order of neither."""
    rng = random.Random(0)
    made = {
        f"{'abcd'[scan]}-{patient}": patient
        for patient in patients
        for scan in range(1 + rng.randrange(most))
    }
    order = rng.sample(sorted(made), len(made))
    return {name: made[name] for name in order}


def test_335_subjects_are_the_papers_231_12_and_92():
    assert sizes(335) == (231, 12, 92)


@pytest.mark.parametrize(
    "count, expected",
    [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (2, 0, 1)), (29, (20, 1, 8)), (5, (3, 0, 2))],
)
def test_small_numbers_are_rounded_and_train_comes_first(count, expected):
    assert sizes(count) == expected


def test_a_half_is_rounded_up_and_no_part_is_more_than_there_is():
    assert sizes(5, (1, 1, 0)) == (3, 2, 0)
    assert sizes(1, (1, 1, 8)) == (1, 0, 0)
    assert sizes(4, (1, 0, 0)) == (4, 0, 0)


@pytest.mark.parametrize("count", [1, 2, 7, 30, 335])
def test_each_subject_is_in_exactly_one_part_and_the_parts_are_sorted(count):
    for patients in ({name: name for name in names(count)}, scans(names(count))):
        parts = split_subjects(patients, PAPER, 3)
        assert list(parts) == ["train", "validation", "test"]
        assert sorted(sum(parts.values(), [])) == sorted(patients)
        assert all(part == sorted(part) for part in parts.values())


@pytest.mark.parametrize("seed", range(5))
def test_all_scans_of_a_patient_go_the_way_that_the_patient_goes(seed):
    """Also with the same draws: a second scan of one changes nobody's part."""
    patients = scans(names(60))
    assert Counter(Counter(patients.values()).values())[1] < 30
    parts = split_subjects(patients, (2, 1, 1), seed)
    alone = split(names(60), (2, 1, 1), seed)
    for part, members in parts.items():
        assert sorted({patients[name] for name in members}) == alone[part]
        assert members == sorted(name for name in patients if patients[name] in alone[part])


def test_the_fractions_are_of_patients_and_not_of_scans():
    patients = {f"A{number}": "A" for number in range(50)} | {n: n for n in "BCDEF"}
    parts = split_subjects(patients, (3, 0, 3), 0)
    assert [len({patients[n] for n in part}) for part in parts.values()] == [3, 0, 3]


def test_one_patient_alone_trains():
    parts = split_subjects({"a": "P", "b": "P"}, (1, 1, 8), 0)
    assert parts == {"train": ["a", "b"], "validation": [], "test": []}


@pytest.mark.parametrize("count", [1, 2, 12, 335])
@pytest.mark.parametrize("seed", [0, 7])
def test_for_one_scan_each_the_draws_are_the_papers_runs(count, seed):
    """What the program drew before it knew of patients: kept splits stay what they are.

    A permutation of the sorted names; its first n f / sum(f), rounded, train, ..."""
    order = np.random.default_rng(seed).permutation(count)
    mixed = [sorted(names(count))[index] for index in order]
    train = max(1, int(count * 20 / 29 + 0.5))
    validation = train + int(count / 29 + 0.5)
    assert split(names(count), PAPER, seed) == {
        "train": sorted(mixed[:train]),
        "validation": sorted(mixed[train:validation]),
        "test": sorted(mixed[validation:]),
    }


def test_the_order_of_the_names_does_not_matter_and_the_seed_does():
    mixed = names(60)
    random.Random(1).shuffle(mixed)
    assert split(mixed, PAPER, 5) == split(names(60), PAPER, 5)
    assert split(mixed, PAPER, 6) != split(mixed, PAPER, 5)


def test_the_split_does_not_follow_the_order_of_the_names():
    train = split(names(60), (1, 0, 1))["train"]
    assert 8 < len(set(train) & set(names(30))) < 22


def test_the_split_of_a_seed_never_changes_with_the_version():
    parts = split(names(12), (2, 1, 1), 7)
    assert parts["validation"] == ["subject002", "subject007", "subject008"]
    assert parts["test"] == ["subject005", "subject009", "subject011"]


def test_no_subjects_are_refused():
    with pytest.raises(InputError, match="no subjects"):
        split_subjects({}, PAPER, 0)


@pytest.mark.parametrize(
    "fractions", [(20, 1), (20, 1, 8, 1), (0, 1, 8), (20, -1, 8), (0.7, 0.1, 0.2), ()]
)
def test_fractions_that_are_not_three_whole_numbers_are_refused(fractions):
    with pytest.raises(InputError, match="config.data.split"):
        split(names(9), fractions)
