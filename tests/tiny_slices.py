"""Three small subjects in three files each, and what is prepared from them."""

import os
import pathlib

import numpy as np

from ummcsgm.data.build_store import build_stores
from ummcsgm.data.crop import SliceView
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.pattern import flat
from ummcsgm.data.nifti import write_new
from ummcsgm.data.store import Store, StoreSettings, damaged_entries, read_index

MODALITIES = ("t1", "t2", "flair")
SHAPE = (9, 11, 7)  # X, Y, Z on disk
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])  # left-handed: x is turned on reading
SETTINGS = StoreSettings(MODALITIES, SliceView((8, 16), 0.0, False, 0), min_brain=0.1)
PATTERN = "{subject}/{subject}-{modality}.nii.gz"


def volume(seed: int) -> np.ndarray:
    """A brain of 5 x 6 voxels and negative values in it; its lowest slices small."""
    values = np.random.default_rng(seed).normal(400, 250, SHAPE).astype(np.float32)
    brain = np.zeros(SHAPE, bool)
    brain[3:8, 2:8, 2:6] = True
    brain[4:6, 4:6, 0:2] = True
    return np.where(brain, values, 0)


def write_subject(folder: pathlib.Path, name: str, modalities, seed: int) -> None:
    """The files of subject `name` in PATTERN."""
    for number, modality in enumerate(modalities):
        path = folder / name / f"{name}-{modality}.nii.gz"
        write_new(path, volume(10 * seed + number) * (number + 1), AFFINE)


def write_three(folder: pathlib.Path) -> pathlib.Path:
    """Subjects a, b and c, of which b has no t2."""
    write_subject(folder, "a", MODALITIES, 1)
    write_subject(folder, "b", ("t1", "flair"), 2)
    write_subject(folder, "c", MODALITIES, 3)
    return folder


def look(folder: pathlib.Path, mask: str = "") -> list:
    """The subjects in `folder`, by name."""
    return find_subjects(folder, [flat(MODALITIES, PATTERN, mask)]).subjects


def made(folder, splits, settings=SETTINGS, processes=1):
    """The stores, and the (done, of how many) that were reported on the way."""
    reports = []
    stores = build_stores(
        folder,
        splits,
        settings,
        processes=processes,
        report=lambda done, total: reports.append((done, total)),
    )
    return stores, reports


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """All that lies in `folder`, but for the lock that says who works there."""
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {
        os.fspath(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name != "lock"
    }


def open_store(folder: pathlib.Path, split: str) -> Store:
    """The store of `split` in `folder`, of which no byte is damaged."""
    store = read_index(folder)[1][split]
    assert damaged_entries(store) == []
    return store
