"""Subjects dealt into train, validation and test, the same way each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ummcsgm.types import InputError


def split_subjects(
    names: Sequence[str], fractions: Sequence[int], seed: int
) -> dict[str, list[str]]:
    """Each of `names` in one of train, validation and test, each list sorted.

    Shares of n subjects are n f / sum(f) by rounding for train and validation, and
    the rest is the test: (20, 1, 8) makes 231, 12 and 92 of the paper's 335. Train
    has one subject at least. The order of `names` does not matter.

    Raises:
        InputError: a name stands twice, there is none, or the fractions are not
            three whole numbers of which the first is above 0.
    """
    _check_names(names)
    _check_fractions(fractions)
    ordered = sorted(names)
    order = np.random.default_rng(seed).permutation(len(ordered))
    shuffled = [ordered[place] for place in order]
    train = max(1, _share(len(names), fractions[0], sum(fractions)))
    validation = train + _share(len(names), fractions[1], sum(fractions))
    return {
        "train": sorted(shuffled[:train]),
        "validation": sorted(shuffled[train:validation]),
        "test": sorted(shuffled[validation:]),
    }


def _share(count: int, part: int, whole: int) -> int:
    """`count * part / whole` to the nearest whole number, a half upwards."""
    return (2 * count * part + whole) // (2 * whole)


def _check_names(names: Sequence[str]) -> None:
    """There are names, each once."""
    if not names:
        raise InputError("there are no subjects to split")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(f"subject {twice[0]} stands twice among those to split")


def _check_fractions(fractions: Sequence[int]) -> None:
    """`fractions` are three whole numbers, the first above 0."""
    whole = all(isinstance(part, int) and part >= 0 for part in fractions)
    if len(fractions) != 3 or not whole or fractions[0] == 0:
        raise InputError(
            f"config.data.split is {tuple(fractions)}; wanted three whole numbers for "
            "train, validation and test, the first above 0"
        )
