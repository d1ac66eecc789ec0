"""NIfTI -> prepared slices: several processes, continued, checked, never half-trusted.

Each subject is a part that exists wholly or not at all. When all are there, each split
becomes one array; then the index is replaced, and only then is anything removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import filelock
import numpy as np

from ummcsgm.data.crop import slices_with_brain
from ummcsgm.data.labels import network_labels, read_labels
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import spacing_in_plane
from ummcsgm.data.store import (
    FORMAT,
    INDEX,
    STORED,
    SourceFile,
    Store,
    StoredSubject,
    StoreSettings,
    crc_of,
    damaged_entries,
    entry_from_json,
    index_content,
    read_index,
)
from ummcsgm.data.subjects import PreparedSubject, network_stacks, prepare_subject
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import (
    atomic_writer,
    read_checksummed,
    sha256_of_file,
    with_checksum,
    write_atomic,
)
from ummcsgm.utils.pool import map_in_processes

RANGE = (0.1, 99.9)  # percentiles
LARGEST = float(np.finfo(STORED).max)  # a hot voxel beyond it would become infinite
Report = Callable[[int, int], None]  # (done, of how many)


def build_stores(
    folder: Path,
    splits: dict[str, Sequence[Subject]],
    settings: StoreSettings,
    *,
    processes: int,
    report: Report,
) -> dict[str, Store]:
    """The stores in `folder` of each split's axial slices that show enough brain.

    A subject that is there already, made with these settings from files of this
    content, is checked and left as it is, also where an earlier run was ended half-way.
    Another process that prepares the same folder is waited for.

    Raises:
        InputError: a file is unreadable or cannot be scaled, or a brain does not fit
            in the grid or shows in no slice.
    """
    folder = Path(folder)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        stored = _stored(folder, settings)
        subjects = [subject for split in splits.values() for subject in split]
        found = {s.name: _finished(folder, s, settings, stored) for s in subjects}
        todo = [subject for subject in subjects if found[subject.name] is None]
        for entry in map_in_processes(
            partial(_make, folder, settings), todo, processes, ordered=False
        ):
            found[entry.name] = entry
            done = sum(entry is not None for entry in found.values())
            report(done, len(found))
        stores = {
            split: _gather(folder, settings, split, [found[s.name] for s in members], stored)
            for split, members in splits.items()
            if members
        }
        _publish(folder, settings, stores)
    return stores


def _stored(folder: Path, settings: StoreSettings) -> dict[str, tuple[Store, StoredSubject]]:
    """The sound entries of the present index, if it was made with these settings."""
    known = read_index(folder)
    if known is None or known[0] != settings:
        return {}
    return {
        entry.name: (store, entry)
        for store in known[1].values()
        for damaged in [set(damaged_entries(store))]
        for entry in store.subjects
        if entry.name not in damaged
    }


def _finished(
    folder: Path, subject: Subject, settings: StoreSettings, stored: dict
) -> StoredSubject | None:
    """The entry of `subject` where its slices are there and whole, else None."""
    if subject.name in stored:
        entry = _renewed(stored[subject.name][1], subject, settings)
        if entry is not None:
            return entry
    fields = read_checksummed(_part(folder, subject.name, settings)[0])
    if fields is None:
        return None
    entry = _renewed(entry_from_json(fields), subject, settings)
    if entry is None or _part_images(folder, entry, settings) is None:
        return None
    return entry


def _renewed(
    entry: StoredSubject, subject: Subject, settings: StoreSettings
) -> StoredSubject | None:
    """`entry`, with today's dates, if it was made of what `subject` has; else None."""
    files = _files(subject, settings)
    about = (entry.name, entry.group, entry.patient)
    if about != (subject.name, subject.group, subject.patient):
        return None
    if entry.sources.keys() != files.keys():
        return None
    sources = {key: entry.sources[key].renewed(path) for key, path in files.items()}
    return None if None in sources.values() else replace(entry, sources=sources)


def _files(subject: Subject, settings: StoreSettings) -> dict[str, Path]:
    """All files that the slices of `subject` depend on."""
    files = {
        f"{name}:{subject.volume_indices.get(name, '')}": subject.files[name]
        for name in settings.modalities
        if name in subject.files
    }
    masked = settings.view.masked and subject.mask is not None
    labelled = settings.labels and subject.segmentation is not None
    files |= {"mask": subject.mask} if masked else {}
    return files | ({"labels": subject.segmentation} if labelled else {})


def _make(folder: Path, settings: StoreSettings, subject: Subject) -> StoredSubject:
    """The entry of `subject`, whose slices and record are now a part in `folder`."""
    # Before they are read: a file that changes meanwhile is then made again.
    files = _files(subject, settings)
    once = {path: _source(path) for path in set(files.values())}
    prepared = prepare_subject(subject, settings.modalities, settings.view)
    images, slices = _slices(subject, prepared, settings)
    geometry = prepared.geometry
    record, array = _part(folder, subject.name, settings)
    write_atomic(array, np.ascontiguousarray(images).data)
    entry = StoredSubject(
        name=subject.name,
        group=subject.group,
        patient=subject.patient,
        slices=tuple(slices),
        scales={name: prepared.scales.get(name) for name in settings.modalities},
        ranges=_ranges_of(prepared, settings.modalities),
        present=tuple(name in prepared.scales for name in settings.modalities),
        window=prepared.window,
        shape=tuple(int(size) for size in geometry.shape[:3]),
        affine=tuple(map(tuple, geometry.affine.tolist())),
        spacing=spacing_in_plane(geometry),
        sources={key: once[path] for key, path in files.items()},
        crc=crc_of([images]),
    )
    write_atomic(record, with_checksum(asdict(entry)))
    return entry


def _ranges_of(prepared: PreparedSubject, modalities: Sequence[str]) -> dict:
    """Where all but 0.1 % of the brain's scaled values lie, on either side."""
    brain = prepared.brain
    return {
        name: tuple((np.percentile(prepared.volumes[name][brain], RANGE) / scale).tolist())
        if (scale := prepared.scales.get(name)) is not None
        else None
        for name in modalities
    }


def _source(path: Path) -> SourceFile:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    facts = path.stat()
    return SourceFile(path.name, facts.st_size, facts.st_mtime_ns, sha256_of_file(path))


def _slices(
    subject: Subject, prepared: PreparedSubject, settings: StoreSettings
) -> tuple[np.ndarray, list[int]]:
    """The slices with enough of the brain as they are stored, and their z."""
    try:
        z = slices_with_brain(prepared.brain, prepared.window, settings.min_brain)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    images = network_stacks(prepared, settings.modalities, z)
    if settings.labels:
        labels = network_labels(prepared, read_labels(subject, prepared), z)
        images = np.concatenate([images, labels[..., None]], axis=-1)
    return np.clip(images, -LARGEST, LARGEST).astype(STORED), z.tolist()


def _part(folder: Path, name: str, settings: StoreSettings) -> tuple[Path, Path]:
    """Where a subject's record and slices lie until its split is gathered."""
    key = _digest([asdict(settings), name])
    return folder / "parts" / f"{key}.json", folder / "parts" / f"{key}.slices"


def _part_images(folder: Path, entry: StoredSubject, settings: StoreSettings) -> np.ndarray | None:
    """The slices in the part of `entry`; None if they are not there, or damaged."""
    try:
        images = np.fromfile(_part(folder, entry.name, settings)[1], STORED)
    except OSError:
        return None
    if crc_of([images]) != entry.crc:
        return None
    return images.reshape(len(entry.slices), *settings.slice_shape)


def _gather(
    folder: Path, settings: StoreSettings, split: str, entries: list[StoredSubject], stored: dict
) -> Store:
    """The array of `split`, of `entries` in their order, whole in `folder`."""
    digest = _digest([asdict(settings), [[e.name, e.crc, e.slices] for e in entries]])
    store = Store(folder / f"{split}-{digest}.npy", settings, tuple(entries))
    before = [stored[e.name][0].path for e in entries if e.name in stored]
    if before == [store.path] * len(entries):
        return store  # its name tells its content, and each entry of it was checked
    with atomic_writer(store.path) as file:
        file.write(store.header)
        for entry in entries:
            file.write(_images(folder, entry, settings, stored))
    return store


def _images(
    folder: Path, entry: StoredSubject, settings: StoreSettings, stored: dict
) -> np.ndarray:
    """The slices of `entry`, from the array that had them before or from its part."""
    if entry.name in stored and stored[entry.name][1].crc == entry.crc:
        store = stored[entry.name][0]
        images = store.read(store.places(entry.name))[0]
    else:
        images = _part_images(folder, entry, settings)
    if images is None or crc_of([images]) != entry.crc:
        raise OSError(f"{folder}: slices of {entry.name} changed while they were copied")
    return images


def _publish(folder: Path, settings: StoreSettings, stores: dict[str, Store]) -> None:
    """index.json tells of `stores`, and nothing else is left in `folder`."""
    content = index_content(settings, stores).encode()
    index = folder / INDEX
    if not index.is_file() or index.read_bytes() != content:
        write_atomic(index, content)
    kept = {store.path for store in stores.values()}
    # Those that begin with a dot were being written when a run was killed.
    patterns = ("*.npy", ".*.npy.*", f".{INDEX}.*", "parts/*")
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path not in kept:
            path.unlink(missing_ok=True)


def _digest(content: object) -> str:
    text = json.dumps([FORMAT, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
