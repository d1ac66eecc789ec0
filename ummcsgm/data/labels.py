"""Tumour segmentations, as the slices of the store carry them.

Values are those of BraTS 2018 to 2021, whatever the files have: 1 necrotic and
non-enhancing core, 2 oedema, 4 enhancing tumour, 0 elsewhere, also where a tumour was
resected; UNKNOWN where the subject has no segmentation.
"""

from __future__ import annotations

import numpy as np

from ummcsgm.types import Array

CORE, OEDEMA, ENHANCING, UNKNOWN = 1, 2, 4, -1
REGIONS = {  # of BraTS, by the labels that each is made of
    "WT": (CORE, OEDEMA, ENHANCING),  # whole tumour
    "TC": (CORE, ENHANCING),  # tumour core
    "ET": (ENHANCING,),  # enhancing tumour
}


def region(labels: Array, name: str) -> Array:
    """The mask of the region called `name`, one of REGIONS."""
    return np.isin(labels, REGIONS[name])
