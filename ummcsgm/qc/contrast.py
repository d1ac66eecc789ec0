"""Which contrast each volume shows, whatever its name says.

Fluid is bright on T2 and dark on T1, T1c and FLAIR; T1 and T1c are nearly one image,
but for vessels and tumours that are brighter on T1c; and what is bright on T2 is dark
on both of them. The names that fit these facts best are the likely ones.

With three or four of FLAIR, T1, T1c and T2 any exchange is told, but for that of a T1c
without enhancement and its T1. With only two, one of which is T2: FLAIR, T1 and T1c are
told from it. T1 and T1c alone are told apart where enough takes up gadolinium (seven of
ten brains that were tried). Of FLAIR with only T1 or T1c nothing is said: in real scans
their tails are alike, they go together here and not there, and neither depth nor grey
and white matter set them apart safely. PD is judged beside T2 with T1 or T1c only.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations

import numpy as np
from scipy import ndimage, stats

from ummcsgm.data.layouts.layout import contrast_of
from ummcsgm.qc.alignment import MIN_VOXELS, Tissue

ALIKE = {  # least correlation; FLAIR and PD may have any with the others
    ("t1", "t1c"): 0.7,
    ("t1", "t2"): -0.45,
    ("t1c", "t2"): -0.45,
}
TAIL = {"t2": 1.0, "pd": 0.0, "t1": -1.0, "t1c": -1.0, "flair": -1.0}  # sign of skew
CLEAR = 0.15  # of fit, by which other names must be better than the present ones
ENHANCED = 0.15  # share of ranks; T1c exceeds T1 in its tails by less in some subjects
MOVED = 0.01  # of fit: where T1 and T1c look alike, the fewest names are wrong
POINTS = 40000


def true_names(tissues: Mapping[str, Tissue]) -> dict[str, str]:
    """The modality that each volume seems to be, for those that seem to be another.

    Empty where all fit their names, where none is clearly better, or where the names
    say no contrast.
    """
    names = _known(tissues)
    inside = _inside([tissues[name] for name in names])
    if len(names) < 2 or np.count_nonzero(inside) < MIN_VOXELS:
        return {}
    contrasts = [contrast_of(name) for name in names]
    facts = _Facts(np.stack([tissues[name].values[inside] for name in names]))
    numbers = range(len(names))
    orders = [dict(zip(contrasts, order, strict=True)) for order in permutations(numbers)]
    present = orders[0]
    best = max(orders, key=lambda order: facts.fit(order) - MOVED * _moved(order, present))
    if facts.fit(best) < facts.fit(present) + CLEAR or not facts.plausible(best):
        return {}
    true = {volume: contrast for contrast, volume in best.items()}
    named = dict(zip(contrasts, names, strict=True))
    return {n: named[true[k]] for k, n in enumerate(names) if named[true[k]] != n}


def _known(tissues: Mapping[str, Tissue]) -> list[str]:
    """The names that say a contrast, none twice, PD only where T1 and T2 are there."""
    named = {name: contrast_of(name) for name in tissues}
    there = list(named.values())
    if "t2" not in there or not {"t1", "t1c"} & set(there):
        named = {name: c for name, c in named.items() if c != "pd"}
    return [n for n, c in named.items() if c is not None and there.count(c) == 1]


def _moved(order: Mapping[str, int], present: Mapping[str, int]) -> int:
    """For how many contrasts `order` has another volume than `present`."""
    return sum(order[contrast] != present[contrast] for contrast in order)


def _inside(tissues: list[Tissue]) -> np.ndarray:
    """Where the brain is in all of `tissues`, but for its surface."""
    if not tissues:
        return np.zeros((1, 1, 1), bool)
    return ndimage.binary_erosion(np.logical_and.reduce([t.brain for t in tissues]))


class _Facts:
    """What the volumes [M, N] show: how they go together, and their tails."""

    def __init__(self, values: np.ndarray):
        random = np.random.default_rng(0)
        values = values[:, random.permutation(values.shape[1])[:POINTS]]
        ranks = stats.rankdata(values, axis=1) / values.shape[1]
        self.together = np.corrcoef(ranks)
        low, middle, high = np.percentile(values, [2, 50, 98], axis=1)
        self.skew = (high + low - 2 * middle) / np.maximum(high - low, 1e-6)
        self.ranks = ranks

    def plausible(self, order: Mapping[str, int]) -> bool:
        """Whether T1, T1c and T2 go together as they do, also in very noisy volumes."""
        return all(seen > abs(ALIKE[pair]) for pair, seen in self._alike(order).items())

    def fit(self, order: Mapping[str, int]) -> float:
        """How well the contrasts fit the volumes whose numbers `order` has for them."""
        alike = sum(self._alike(order).values())
        tails = sum(TAIL[contrast] * self.skew[at] for contrast, at in order.items())
        both = {"t1", "t1c"} <= {*order}
        return alike + tails + (self.excess(order["t1c"], order["t1"]) if both else 0)

    def _alike(self, order: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """The correlation of each pair in ALIKE, with the sign that it should have."""
        return {
            (one, other): float(np.sign(least) * self.together[order[one], order[other]])
            for (one, other), least in ALIKE.items()
            if one in order and other in order
        }

    def excess(self, one: int, other: int) -> float:
        """How much more `one` exceeds `other` than the reverse; 0 where by little."""
        tails = np.percentile(self.ranks[one] - self.ranks[other], [1, 99])
        return float(tails.sum()) if abs(tails.sum()) > ENHANCED else 0.0
