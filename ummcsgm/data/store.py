"""Prepared slices: read once from NIfTI, then slice by slice from one array a split.

A folder holds SPLIT-DIGEST.npy, float16 [S, H, W, C], for each split, and index.json,
which says whose each slice is and what it was made from. The index is written last: it
names whole arrays only, and until it is there the former one is true. What a stopped
run has finished lies in parts/, a subject a file, and is not made again. Of arrays and
index alike every byte is under a checksum.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ummcsgm.data.crop import CropWindow, SliceView
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_checksummed, sha256_of_file, with_checksum

FORMAT = 6  # of the files: part of every key, so that old ones are made anew
STORED = np.dtype(np.float16)
INDEX = "index.json"
THREADS = 4  # that check slices: checksums and reads leave Python to others


@dataclass(frozen=True)
class StoreSettings:
    """What the stored slices depend on, beside the images."""

    modalities: tuple[str, ...]
    view: SliceView
    min_brain: float  # part of the grid that is brain, above which a slice is kept
    labels: bool = False  # the segmentation is a last channel, `labels.read_labels`

    @property
    def slice_shape(self) -> tuple[int, int, int]:
        """H, W and, with the neighbours on either side, M (2 n + 1); 1 for labels."""
        copies = 1 + 2 * self.view.neighbours
        return (*self.view.grid, copies * len(self.modalities) + self.labels)

    @property
    def slice_bytes(self) -> int:
        """The size of a stored slice."""
        return int(np.prod(self.slice_shape)) * STORED.itemsize


@dataclass(frozen=True)
class SourceFile:
    """A file that slices were made from."""

    name: str
    size: int
    time: int  # of its last change, ns
    sha256_of_file: str

    def renewed(self, path: Path) -> SourceFile | None:
        """This, of `path`'s date, if that file holds these bytes; else None.

        They are read only if the date differs. The folder may be another.
        """
        if not path.is_file():
            return None
        now = path.stat()  # before it is read: a later change has a later date
        if (path.name, now.st_size) != (self.name, self.size):
            return None
        if now.st_mtime_ns != self.time and sha256_of_file(path) != self.sha256:
            return None
        return replace(self, time=now.st_mtime_ns)


@dataclass(frozen=True)
class StoredSubject:
    """One subject's slices in the store."""

    name: str
    group: str
    patient: str
    slices: tuple[int, ...]  # the z of each kept slice, from below
    scales: dict[str, float | None]  # by modality, None where it is absent
    ranges: dict[str, tuple[float, float] | None]  # that tissue has, scaled
    present: tuple[bool, ...]  # in the order of the modalities
    window: CropWindow
    shape: tuple[int, int, int]  # X, Y, Z as stored in the files
    affine: tuple[tuple[float, ...], ...]
    spacing: tuple[float, float]  # mm of a voxel in the plane, y and x
    sources: dict[str, SourceFile]
    crc: int  # CRC-32 of the slices' bytes


@dataclass(frozen=True)
class Store:
    """The prepared slices of a split's subjects: slice i of len(store).

    Safe to read from any thread or process. Memory is that of the slices asked for,
    whatever the size of the store: they are read, not mapped. That is as fast, 7000 to
    28000 slices of 192 x 192 x 4 a second either way on two shared cores, while an
    epoch of an array of 338 MiB raised resident memory by 355 MiB mapped, by 18 read.
    """

    path: Path
    settings: StoreSettings
    subjects: tuple[StoredSubject, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def digest(self) -> str:
        """Changes when the subjects do, or any byte of their slices."""
        content = [[entry.name, entry.crc, entry.slices] for entry in self.subjects]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def read(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The slices at `places` [B]: float16 [B, *slice_shape], and present bool
        [B, M]."""
        if np.any((places < 0) | (places >= len(self))):
            raise IndexError(f"slices {places} of a store of {len(self)}")
        images = np.empty((len(places), *self.settings.slice_shape), STORED)
        for row, place in zip(images, places, strict=True):
            self._read_into(row, int(place))
        whose = np.searchsorted(self._ends, places, side="right") - 1
        return images, self._present[whose]

    def subject_slices(self, name: str) -> np.ndarray:
        """All slices of subject `name`, float32 [S, H, W, M], from below."""
        stacks = self.read(self.places(name))[0]
        return stacks[..., : len(self.settings.modalities)].astype(np.float32)

    def places(self, name: str) -> np.ndarray:
        """Where the slices of subject `name` are, from below."""
        place = [entry.name for entry in self.subjects].index(name)
        return np.arange(*self._ends[place : place + 2])

    def scales(self, modality: str) -> dict[str, float]:
        """The scale of `modality` by subject name, for those that have it."""
        pairs = ((entry.name, entry.scales[modality]) for entry in self.subjects)
        return {name: scale for name, scale in pairs if scale is not None}

    @cached_property
    def _ends(self) -> np.ndarray:
        """The first slice of each subject, and the number of all."""
        return np.cumsum([0, *(len(entry.slices) for entry in self.subjects)])

    @cached_property
    def _present(self) -> np.ndarray:
        modalities = len(self.settings.modalities)
        rows = [entry.present for entry in self.subjects]
        return np.array(rows, bool).reshape(len(rows), modalities)

    @cached_property
    def header(self) -> bytes:
        """How the file begins, for `np.load`; the slices follow."""
        shape = (len(self), *self.settings.slice_shape)
        fields = {"descr": STORED.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file := io.BytesIO(), fields)
        return file.getvalue()

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb", buffering=0)  # closed with the store's last user

    def _read_into(self, row: np.ndarray, place: int) -> None:
        offset = len(self.header) + place * self.settings.slice_bytes
        if os.preadv(self._file.fileno(), [row], offset) != row.nbytes:
            raise OSError(f"{self.path} was cut short while it was read")

    def __getstate__(self) -> dict:
        # An open file is this process's own.
        return {k: v for k, v in self.__dict__.items() if k != "_file"}


def open_store(folder: Path, split: str) -> Store:
    """The store of `split` in `folder`, every byte of which was checked.

    Raises:
        InputError: nothing, or not that split, was prepared there, or it is damaged.
    """
    known = read_index(folder)
    if known is None or split not in known[1]:
        raise InputError(
            f"{folder} has no prepared slices of {split}, or none whose index is "
            "whole: use --mode prepare"
        )
    store = known[1][split]
    damaged = damaged_entries(store)
    if damaged:
        raise InputError(
            f"{store.path} is damaged, first in subject {damaged[0]}: use --mode "
            "prepare, which makes these slices again"
        )
    return store


def read_index(folder: Path) -> tuple[StoreSettings, dict[str, Store]] | None:
    """What index.json says is in `folder`, whose arrays are not checked here.

    None if there is none, or one that is damaged or of another format.
    """
    content = read_checksummed(Path(folder) / INDEX)
    if content is None or content.get("format") != FORMAT:
        return None
    fields = content["settings"]
    view = fields["view"] | {"grid": tuple(fields["view"]["grid"])}
    rest = fields["min_brain"], fields["labels"]
    settings = StoreSettings(tuple(fields["modalities"]), SliceView(**view), *rest)
    stores = {
        split: Store(Path(folder) / one["file"], settings, _entries(one["subjects"]))
        for split, one in content["splits"].items()
    }
    return settings, stores


def index_content(settings: StoreSettings, stores: dict[str, Store]) -> str:
    """The text of index.json: the inverse of `read_index`."""
    splits = {
        split: {"file": store.path.name, "subjects": [asdict(entry) for entry in store.subjects]}
        for split, store in stores.items()
    }
    return with_checksum({"format": FORMAT, "settings": asdict(settings), "splits": splits})


def damaged_entries(store: Store) -> list[str]:
    """The subjects whose slices are not the ones that were stored, in order.

    What is wrong before the slices counts as the first subject's damage, and what
    stands behind them as the last one's.
    """
    names = [entry.name for entry in store.subjects]
    if not store.path.is_file():
        return names
    with ThreadPoolExecutor(THREADS) as pool:
        crcs = list(pool.map(lambda name: _crc_now(store, name), names))
    pairs = zip(store.subjects, crcs, strict=True)
    damaged = {entry.name for entry, crc in pairs if crc != entry.crc}
    with store.path.open("rb") as file:
        if file.read(len(store.header)) != store.header:
            damaged.update(names[:1])
        size = len(store.header) + len(store) * store.settings.slice_bytes
        if file.seek(0, os.SEEK_END) > size:
            damaged.update(names[-1:])
    return [name for name in names if name in damaged]


def crc_of(arrays) -> int:
    """CRC-32 of the bytes of `arrays`, one after the other."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array), crc)
    return crc


def entry_from_json(fields: dict) -> StoredSubject:
    """The entry that `dataclasses.asdict` made into `fields`."""
    window = {key: tuple(value) for key, value in fields["window"].items()}
    sources = {key: SourceFile(**value) for key, value in fields["sources"].items()}
    lists = ("slices", "present", "shape", "spacing")
    changed = {name: tuple(fields[name]) for name in lists}
    changed["affine"] = tuple(map(tuple, fields["affine"]))
    ranges = fields["ranges"].items()
    changed["ranges"] = {k: None if v is None else tuple(v) for k, v in ranges}
    changed |= {"window": CropWindow(**window), "sources": sources}
    return StoredSubject(**{**fields, **changed})


def _entries(subjects: list[dict]) -> tuple[StoredSubject, ...]:
    return tuple(map(entry_from_json, subjects))


def _crc_now(store: Store, name: str) -> int | None:
    """The checksum of what the file has for subject `name`; None if it is unreadable.

    One slice is in memory at a time.
    """
    try:
        return crc_of(store.read(place[None])[0] for place in store.places(name))
    except OSError:
        return None
