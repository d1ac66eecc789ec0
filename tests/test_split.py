"""The paper's split, the same each time, and each subject in one part."""

import random

import pytest

from ummcsgm.data.split import split_subjects
from ummcsgm.types import InputError

PAPER = (20, 1, 8)


def names(count):
    return [f"subject{number:03d}" for number in range(count)]


def sizes(count, fractions=PAPER):
    return tuple(
        len(part) for part in split_subjects(names(count), fractions, 0).values()
    )


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
    parts = split_subjects(names(count), PAPER, 3)
    assert list(parts) == ["train", "validation", "test"]
    assert sorted(sum(parts.values(), [])) == names(count)
    assert all(part == sorted(part) for part in parts.values())


def test_the_order_of_the_names_does_not_matter_and_the_seed_does():
    mixed = names(60)
    random.Random(1).shuffle(mixed)
    assert split_subjects(mixed, PAPER, 5) == split_subjects(names(60), PAPER, 5)
    assert split_subjects(mixed, PAPER, 6) != split_subjects(mixed, PAPER, 5)


def test_the_split_does_not_follow_the_order_of_the_names():
    train = split_subjects(names(60), (1, 0, 1), 0)["train"]
    assert 8 < len(set(train) & set(names(30))) < 22


def test_the_split_of_a_seed_never_changes_with_the_version():
    parts = split_subjects(names(12), (2, 1, 1), 7)
    assert parts["validation"] == ["subject002", "subject007", "subject008"]
    assert parts["test"] == ["subject005", "subject009", "subject011"]


def test_a_name_that_stands_twice_and_no_names_are_refused():
    with pytest.raises(InputError, match="subject001 stands twice"):
        split_subjects([*names(3), "subject001"], PAPER, 0)
    with pytest.raises(InputError, match="no subjects"):
        split_subjects([], PAPER, 0)


@pytest.mark.parametrize(
    "fractions", [(20, 1), (20, 1, 8, 1), (0, 1, 8), (20, -1, 8), (0.7, 0.1, 0.2), ()]
)
def test_fractions_that_are_not_three_whole_numbers_are_refused(fractions):
    with pytest.raises(InputError, match="config.data.split"):
        split_subjects(names(9), fractions, 0)
