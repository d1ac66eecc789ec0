"""Patients dealt into train, validation and test, the same way each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ummcsgm.types import InputError


def split_subjects(
    patients: Mapping[str, str], fractions: Sequence[int], seed: int
) -> dict[str, list[str]]:
    """Each subject of `patients`, which names whose scan it is, in one of three parts.

    All scans of a patient go the same way. Of n patients, n f / sum(f) by rounding
    train and validate, and the rest is the test: (20, 1, 8) makes 231, 12 and 92 of the
    paper's 335. Train has one patient at least. Lists are sorted; the order of
    `patients` does not matter.

    Raises:
        InputError: there is no subject, or the fractions are not three whole numbers
            of which the first is above 0.
    """
    if not patients:
        raise InputError("there are no subjects to split")
    _check_fractions(fractions)
    ordered = sorted(set(patients.values()))
    order = np.random.default_rng(seed).permutation(len(ordered))
    shuffled = [ordered[place] for place in order]
    train = max(1, _share(len(ordered), fractions[0], sum(fractions)))
    validation = train + _share(len(ordered), fractions[1], sum(fractions))
    parts = {
        "train": set(shuffled[:train]),
        "validation": set(shuffled[train:validation]),
        "test": set(shuffled[validation:]),
    }
    return {
        split: sorted(name for name, patient in patients.items() if patient in part)
        for split, part in parts.items()
    }


def _share(count: int, part: int, whole: int) -> int:
    """`count * part / whole` to the nearest whole number, a half upwards."""
    return (2 * count * part + whole) // (2 * whole)


def _check_fractions(fractions: Sequence[int]) -> None:
    """`fractions` are three whole numbers, the first above 0."""
    whole = all(isinstance(part, int) and part >= 0 for part in fractions)
    if len(fractions) != 3 or not whole or fractions[0] == 0:
        raise InputError(
            f"config.data.split is {tuple(fractions)}; wanted three whole numbers for "
            "train, validation and test, the first above 0"
        )
