"""Which contrast each volume shows, whatever its name says.

Fluid is bright on T2 and dark on T1, T1c and FLAIR; T1 and T1c are nearly one image,
but for vessels and tumours that are brighter on T1c; and what is bright on T2 is dark
on both of them. The names that fit these facts best are the likely ones.

With three or four of FLAIR, T1, T1c and T2 any exchange is found, except that of a T1c without
enhancement and its T1. With only two, FLAIR, T1 and T1c are distinguished from T2, and T1 from T1c
where enough tissue takes up gadolinium (seven of ten brains that were tried). FLAIR with only T1 or
T1c is not checked: in real scans their tails are alike, their correlation varies, and neither depth
nor grey and white matter distinguish them safely. PD is checked beside T2 with T1 or T1c only.
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
MOVE_COST = 0.01  # of fit: if T1 and T1c look alike, the fewest names are wrong
POINTS = 40000


def true_names(tissues: Mapping[str, Tissue]) -> dict[str, str]:
    """{modality: the modality that its volume shows}, for those that differ.

    Empty if all fit their names, if no other names are clearly better, or if the names
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

    def score(order: dict[str, int]) -> float:
        return facts.fit(order) - MOVE_COST * sum(order[c] != present[c] for c in order)

    best = max(orders, key=score)
    if facts.fit(best) < facts.fit(present) + CLEAR or not facts.plausible(best):
        return {}
    true = {volume: contrast for contrast, volume in best.items()}
    named = dict(zip(contrasts, names, strict=True))
    return {n: named[true[k]] for k, n in enumerate(names) if named[true[k]] != n}


def _known(tissues: Mapping[str, Tissue]) -> list[str]:
    """The names that say a contrast, each contrast once, PD only with T2 and T1 or T1c."""
    named = {name: contrast_of(name) for name in tissues}
    contrasts = list(named.values())
    if "t2" not in contrasts or not {"t1", "t1c"} & set(contrasts):
        named = {name: c for name, c in named.items() if c != "pd"}
    return [n for n, c in named.items() if c is not None and contrasts.count(c) == 1]


def _inside(tissues: list[Tissue]) -> np.ndarray:
    """The brain of all `tissues`, without its surface."""
    if not tissues:
        return np.zeros((1, 1, 1), bool)
    return ndimage.binary_erosion(np.logical_and.reduce([t.brain for t in tissues]))


class _Facts:
    """Statistics of the volumes [M, N]: rank correlations and tails."""

    def __init__(self, values: np.ndarray):
        random = np.random.default_rng(0)
        values = values[:, random.permutation(values.shape[1])[:POINTS]]
        ranks = stats.rankdata(values, axis=1) / values.shape[1]
        self.correlation = np.corrcoef(ranks)
        low, middle, high = np.percentile(values, [2, 50, 98], axis=1)
        self.skew = (high + low - 2 * middle) / np.maximum(high - low, 1e-6)
        self.ranks = ranks

    def plausible(self, order: Mapping[str, int]) -> bool:
        """Whether T1, T1c and T2 correlate as they do even in very noisy volumes."""
        return all(value > abs(ALIKE[pair]) for pair, value in self._alike(order).items())

    def fit(self, order: Mapping[str, int]) -> float:
        """How well each contrast fits the volume whose index `order` gives for it."""
        alike = sum(self._alike(order).values())
        tails = sum(TAIL[contrast] * self.skew[at] for contrast, at in order.items())
        both = {"t1", "t1c"} <= {*order}
        return alike + tails + (self.excess(order["t1c"], order["t1"]) if both else 0)

    def _alike(self, order: Mapping[str, int]) -> dict[tuple[str, str], float]:
        """The correlation of each pair in ALIKE, with the sign that it should have."""
        return {
            (first, second): float(np.sign(least) * self.correlation[order[first], order[second]])
            for (first, second), least in ALIKE.items()
            if first in order and second in order
        }

    def excess(self, first: int, second: int) -> float:
        """How much more `first` exceeds `second` than the reverse; 0 if by little."""
        tails = np.percentile(self.ranks[first] - self.ranks[second], [1, 99])
        return float(tails.sum()) if abs(tails.sum()) > ENHANCED else 0.0
