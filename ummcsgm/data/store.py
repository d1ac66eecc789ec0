"""Prepared training slices: read once from NIfTI, then a slice at a time from disk.

A folder holds, for each subject, NAME.npy with float16 [S, H, W, M] and beside it
NAME.subject.json with what was done; index.json, written last, lists them all.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ummcsgm.data.layouts import Subject
from ummcsgm.data.subjects import network_slices, prepare_subject
from ummcsgm.data.window import Window
from ummcsgm.files import read_json, write_whole
from ummcsgm.types import InputError

FORMAT = 1  # of the files: part of every key, so that old ones are made anew
STORED = np.dtype(np.float16)
LARGEST = float(np.finfo(STORED).max)  # a hot voxel beyond it would become infinite


@dataclass(frozen=True)
class Settings:
    """What the stored slices depend on, beside the images."""

    modalities: tuple[str, ...]
    grid: tuple[int, int]  # H, W
    min_brain: float  # part of the grid that is brain, above which a slice is kept


@dataclass(frozen=True)
class Entry:
    """One subject in the store."""

    name: str
    group: str
    slices: tuple[int, ...]  # the z of each kept slice, from below
    scales: dict[str, float | None]  # by modality, None where it is absent
    present: tuple[bool, ...]  # in the order of the modalities
    window: Window
    key: str  # a digest of the settings and of the files it was made from
    bytes: int  # the size of NAME.npy


@dataclass(frozen=True)
class Store:
    """The prepared slices of some subjects: slice i of len(store).

    No file stays open: a store may hold more subjects than a process may hold files,
    and may be read from any thread or process.
    """

    folder: Path
    settings: Settings
    subjects: tuple[Entry, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Slice `i`: images float32 [H, W, M], present bool [M], and whose it is."""
        subject = int(np.searchsorted(self._ends, i, side="right")) - 1
        if not 0 <= i < len(self):
            raise IndexError(f"slice {i} of a store of {len(self)}")
        entry = self.subjects[subject]
        images = self._read(entry, i - int(self._ends[subject]), 1)[0]
        return images, np.array(entry.present), subject

    def subject_slices(self, name: str) -> np.ndarray:
        """All slices of subject `name`, float32 [S, H, W, M], from below."""
        entry = next(entry for entry in self.subjects if entry.name == name)
        return self._read(entry, 0, len(entry.slices))

    def select(self, names: Sequence[str]) -> Store:
        """The store of those of its subjects that are in `names`."""
        wanted = set(names)
        return replace(
            self,
            subjects=tuple(entry for entry in self.subjects if entry.name in wanted),
        )

    def scales(self, modality: str) -> dict[str, float]:
        """The scale of `modality` by subject name, for those that have it."""
        pairs = ((entry.name, entry.scales[modality]) for entry in self.subjects)
        return {name: scale for name, scale in pairs if scale is not None}

    @cached_property
    def _ends(self) -> np.ndarray:
        """The first slice of each subject, and the number of all."""
        return np.cumsum([0, *(len(entry.slices) for entry in self.subjects)])

    def _read(self, entry: Entry, first: int, count: int) -> np.ndarray:
        """`count` slices of `entry` from `first`, float32 [count, H, W, M]."""
        shape = (count, *self.settings.grid, len(self.settings.modalities))
        a_slice = int(np.prod(shape[1:]))
        head = entry.bytes - len(entry.slices) * a_slice * STORED.itemsize
        offset = head + first * a_slice * STORED.itemsize
        path = self.folder / f"{entry.name}.npy"
        values = np.fromfile(path, STORED, count * a_slice, offset=offset)
        return values.reshape(shape).astype(np.float32)


def prepare(
    folder: Path,
    subjects: Sequence[Subject],
    modalities: Sequence[str],
    *,
    grid: tuple[int, int],
    min_brain: float,
    processes: int,
) -> Store:
    """The store in `folder` of the axial slices of `subjects` that show enough brain.

    A subject already there, made with the same settings from the same files, is left
    as it is, also where an earlier run was ended half-way.

    Raises:
        InputError: a file is unreadable or cannot be scaled, or a brain does not fit
            in the grid or shows in no slice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(tuple(modalities), (grid[0], grid[1]), min_brain)
    kept = [_finished(folder, subject, settings) for subject in subjects]
    pairs = zip(subjects, kept, strict=True)
    todo = [subject for subject, entry in pairs if entry is None]
    made = iter(_map(partial(_make, folder, settings), todo, processes))
    entries = tuple(next(made) if entry is None else entry for entry in kept)
    store = Store(folder, settings, entries)
    _write_index(store)
    return store


def read_store(folder: Path) -> Store:
    """The store that was prepared in `folder`.

    Raises:
        InputError: none was, or not to its end.
    """
    path = Path(folder) / "index.json"
    if not path.is_file():
        raise InputError(f"{folder}: no prepared slices here, {path.name} is missing")
    content = read_json(path)
    fields = content["settings"]
    settings = Settings(
        tuple(fields["modalities"]), tuple(fields["grid"]), fields["min_brain"]
    )
    return Store(Path(folder), settings, tuple(map(_entry, content["subjects"])))


def _map(make: Callable, subjects: list[Subject], processes: int) -> list[Entry]:
    """`make` of each of `subjects`, by `processes` at a time."""
    if processes <= 1 or len(subjects) <= 1:
        return [make(subject) for subject in subjects]
    count = min(processes, len(subjects))
    # Not forked: the caller may hold threads, as JAX does, and a fork of those hangs.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        return list(pool.map(make, subjects))


def _make(folder: Path, settings: Settings, subject: Subject) -> Entry:
    """The entry of `subject`, whose slices and record now lie in `folder`."""
    key = _key(subject, settings)
    prepared = prepare_subject(subject, settings.modalities, settings.grid)
    slices = _slices(subject, prepared.brain, settings)
    images = network_slices(prepared, settings.modalities, slices)
    images = np.clip(images, -LARGEST, LARGEST).astype(STORED)
    content = io.BytesIO()
    np.save(content, images)
    write_whole(folder / f"{subject.name}.npy", content.getvalue())
    entry = Entry(
        name=subject.name,
        group=subject.group,
        slices=tuple(int(z) for z in slices),
        scales={name: prepared.scales.get(name) for name in settings.modalities},
        present=tuple(name in prepared.scales for name in settings.modalities),
        window=prepared.window,
        key=key,
        bytes=len(content.getvalue()),
    )
    _write_json(_record(folder, subject.name), asdict(entry))
    return entry


def _slices(subject: Subject, brain: np.ndarray, settings: Settings) -> np.ndarray:
    """The z of the slices with enough of `brain`."""
    grid = settings.grid[0] * settings.grid[1]
    areas = brain.sum(axis=(1, 2))
    slices = np.flatnonzero(areas > settings.min_brain * grid)
    if slices.size == 0:
        raise InputError(
            f"subject {subject.name}: brain fills at most {areas.max() / grid:.3f} of "
            "config.data.grid in any axial slice, wanted more than "
            f"config.data.min_brain, which is {settings.min_brain:g}"
        )
    return slices


def _key(subject: Subject, settings: Settings) -> str:
    """A digest of all that the slices of `subject` depend on."""
    files = {
        modality: (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for modality, path in subject.files.items()
        if modality in settings.modalities
    }
    parts = [FORMAT, asdict(settings), subject.name, subject.group, files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _finished(folder: Path, subject: Subject, settings: Settings) -> Entry | None:
    """The entry of `subject` where it is done and whole, else None."""
    record, array = _record(folder, subject.name), folder / f"{subject.name}.npy"
    if not record.is_file() or not array.is_file():
        return None
    entry = _entry(read_json(record))
    same = entry.key == _key(subject, settings) and entry.bytes == array.stat().st_size
    return entry if same else None


def _record(folder: Path, name: str) -> Path:
    """Where the entry of subject `name` is kept."""
    return folder / f"{name}.subject.json"


def _entry(fields: dict) -> Entry:
    """The entry that was written as `fields`."""
    window = Window(*(tuple(fields["window"][k]) for k in ("grid", "origin", "frame")))
    lists = {name: tuple(fields[name]) for name in ("slices", "present")}
    return Entry(**{**fields, **lists, "window": window})


def _write_index(store: Store) -> None:
    """index.json lists what `store` holds; it is left alone where it does already."""
    path = store.folder / "index.json"
    content = {
        "settings": asdict(store.settings),
        "subjects": [asdict(entry) for entry in store.subjects],
    }
    if not path.is_file() or path.read_text() != json.dumps(content, indent=1):
        _write_json(path, content)


def _write_json(path: Path, content: dict) -> None:
    """`path` holds `content`."""
    write_whole(path, json.dumps(content, indent=1))
