"""The store: prepared slices, read slice by slice from one array for each split.

A folder holds SPLIT-DIGEST.npy, float16 [S, H, W, C], for each split, and index.json,
which lists the subjects with their slices and their source files. The index is written last,
so that it names complete arrays only. Subjects that a stopped run has finished lie in parts/
and are not made again. Checksums cover every byte of the arrays and of the index.
"""

from __future__ import annotations

import io
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ummcsgm.data.crop import CropWindow, SliceView
from ummcsgm.utils.atomic_io import digest, read_checksummed, sha256_of_file, with_checksum

FORMAT = 6  # of the files: part of every key, so that old ones are made anew
STORED = np.dtype(np.float16)
INDEX = "index.json"
THREADS = 4  # that check slices: checksums and reads release the GIL


@dataclass(frozen=True)
class StoreSettings:
    """The settings that the stored slices depend on."""

    modalities: tuple[str, ...]
    view: SliceView
    min_brain: float  # a slice is stored if brain fills more than this part of the grid
    labels: bool = False  # the segmentation is the last channel, see `subjects.read_labels`

    @property
    def slice_shape(self) -> tuple[int, int, int]:
        """H, W and the channels: M (2 n + 1) with n neighbours on either side, 1 for labels."""
        copies = 1 + 2 * self.view.neighbours
        return (*self.view.grid, copies * len(self.modalities) + self.labels)

    @property
    def slice_bytes(self) -> int:
        """The bytes of a stored slice."""
        return int(np.prod(self.slice_shape)) * STORED.itemsize


@dataclass(frozen=True)
class SourceFile:
    """A file that slices were made from."""

    name: str
    size: int
    time: int  # of its last change, ns
    sha256: str

    def if_unchanged(self, path: Path) -> SourceFile | None:
        """This with the date of `path`, if that file holds the same bytes; else None.

        The bytes are read only if the date differs. The folder may be another.
        """
        if not path.is_file():
            return None
        stat = path.stat()  # before it is read: a later change has a later date
        if (path.name, stat.st_size) != (self.name, self.size):
            return None
        if stat.st_mtime_ns != self.time and sha256_of_file(path) != self.sha256:
            return None
        return replace(self, time=stat.st_mtime_ns)


@dataclass(frozen=True)
class StoredSubject:
    """One subject's slices in the store, as index.json describes them."""

    name: str
    group: str
    patient: str
    slices: tuple[int, ...]  # the z of each stored slice, from below
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
    """The prepared slices of a split's subjects: slices 0 to len(store) - 1.

    Safe to read from any thread or process. Slices are read, not mapped: this is as fast,
    and an epoch of an array of 338 MiB raised resident memory by 18 MiB instead of 355.
    """

    path: Path
    settings: StoreSettings
    subjects: tuple[StoredSubject, ...]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def digest(self) -> str:
        """Changes when the subjects do, or any byte of their slices."""
        content = [[entry.name, entry.crc, entry.slices] for entry in self.subjects]
        return digest(content)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The slices at `indices` [B]: float16 [B, *slice_shape], and present, bool [B, M]."""
        if np.any((indices < 0) | (indices >= len(self))):
            raise IndexError(f"slices {indices} of a store of {len(self)}")
        images = np.empty((len(indices), *self.settings.slice_shape), STORED)
        for image, index in zip(images, indices, strict=True):
            offset = len(self.header) + int(index) * self.settings.slice_bytes
            if os.preadv(self._file.fileno(), [image], offset) != image.nbytes:
                raise OSError(f"{self.path} was cut short while it was read")
        subjects = np.searchsorted(self._starts, indices, side="right") - 1
        return images, self._present[subjects]

    def subject_slices(self, name: str) -> np.ndarray:
        """All slices of subject `name`, float32 [S, H, W, M], from below."""
        stacks = self.read(self.slice_indices(name))[0]
        return stacks[..., : len(self.settings.modalities)].astype(np.float32)

    def slice_indices(self, name: str) -> np.ndarray:
        """The indices of the slices of subject `name`, from below."""
        index = [entry.name for entry in self.subjects].index(name)
        return np.arange(*self._starts[index : index + 2])

    def scales(self, modality: str) -> dict[str, float]:
        """The scale of `modality` by subject name, without subjects that lack it."""
        scales = {entry.name: entry.scales[modality] for entry in self.subjects}
        return {name: scale for name, scale in scales.items() if scale is not None}

    @cached_property
    def _starts(self) -> np.ndarray:
        """The first slice of each subject, and the number of all."""
        return np.cumsum([0, *(len(entry.slices) for entry in self.subjects)])

    @cached_property
    def _present(self) -> np.ndarray:
        present = [entry.present for entry in self.subjects]
        return np.array(present, bool).reshape(-1, len(self.settings.modalities))

    @cached_property
    def header(self) -> bytes:
        """The first bytes of the file, for `np.load`; the slices follow."""
        shape = (len(self), *self.settings.slice_shape)
        fields = {"descr": STORED.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file := io.BytesIO(), fields)
        return file.getvalue()

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb", buffering=0)  # closed with the store's last user

    def __getstate__(self) -> dict:
        # An open file cannot go to another process.
        return {k: v for k, v in self.__dict__.items() if k != "_file"}


def read_index(folder: Path) -> tuple[StoreSettings, dict[str, Store]] | None:
    """The settings and the stores that index.json of `folder` lists, unchecked.

    None if there is no index, or it is damaged or of another format.
    """
    content = read_checksummed(Path(folder) / INDEX)
    if content is None or content.get("format") != FORMAT:
        return None
    fields = content["settings"]
    view = fields["view"] | {"grid": tuple(fields["view"]["grid"])}
    settings = StoreSettings(
        tuple(fields["modalities"]), SliceView(**view), fields["min_brain"], fields["labels"]
    )
    stores = {
        split: Store(
            Path(folder) / entry["file"], settings, tuple(map(entry_from_json, entry["subjects"]))
        )
        for split, entry in content["splits"].items()
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
    """The names of the subjects whose slices have changed since they were stored, in order.

    A damaged header counts as damage of the first subject, and excess bytes at the end
    as damage of the last.
    """
    names = [entry.name for entry in store.subjects]
    if not store.path.is_file():
        return names
    with ThreadPoolExecutor(THREADS) as pool:
        crcs = list(pool.map(lambda name: _read_crc(store, name), names))
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
    """The inverse of `dataclasses.asdict` of a stored subject, after JSON."""
    window = {key: tuple(value) for key, value in fields["window"].items()}
    sources = {key: SourceFile(**value) for key, value in fields["sources"].items()}
    lists = ("slices", "present", "shape", "spacing")
    changed = {name: tuple(fields[name]) for name in lists}
    changed["affine"] = tuple(map(tuple, fields["affine"]))
    ranges = fields["ranges"].items()
    changed["ranges"] = {k: None if v is None else tuple(v) for k, v in ranges}
    changed |= {"window": CropWindow(**window), "sources": sources}
    return StoredSubject(**{**fields, **changed})


def _read_crc(store: Store, name: str) -> int | None:
    """The checksum of the slices of subject `name` in the file; None if it is unreadable.

    Reads one slice at a time.
    """
    try:
        return crc_of(store.read(index[None])[0] for index in store.slice_indices(name))
    except OSError:
        return None
