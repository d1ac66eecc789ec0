"""Builds the store of prepared slices from NIfTI files, with several processes.

Each subject is first a part, written completely or not at all. When all parts exist, each
split becomes one array; then the index is replaced, and last old files are removed. A
stopped run is continued, and every stored byte is checked before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import filelock
import numpy as np

from ummcsgm.data.crop import slices_with_brain
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
from ummcsgm.data.subjects import (
    PreparedSubject,
    network_labels,
    network_stacks,
    prepare_subject,
    read_labels,
)
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import (
    atomic_writer,
    digest,
    read_checksummed,
    sha256_of_file,
    with_checksum,
    write_atomic,
)
from ummcsgm.utils.pool import map_in_processes

TISSUE_RANGE = (0.1, 99.9)  # percentiles
MAX_STORED = float(np.finfo(STORED).max)  # a hot voxel beyond it would become infinite
Report = Callable[[int, int], None]  # (done, of how many)


def build_stores(
    folder: Path,
    splits: dict[str, Sequence[Subject]],
    settings: StoreSettings,
    *,
    processes: int,
    report: Report,
) -> dict[str, Store]:
    """The store in `folder` of each split: its axial slices that show enough brain.

    A subject that is stored already, made with these settings from files of this content,
    is checked and left as it is, also where an earlier run was stopped. Waits for another
    process that prepares the same folder.

    Raises:
        InputError: a file is unreadable or cannot be scaled, or a brain does not fit
            in the grid or shows in no slice.
    """
    folder = Path(folder)
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        stored = _stored(folder, settings)
        subjects = [subject for split in splits.values() for subject in split]
        entries = {s.name: _finished(folder, s, settings, stored) for s in subjects}
        todo = [subject for subject in subjects if entries[subject.name] is None]
        for entry in map_in_processes(
            partial(_make, folder, settings), todo, processes, ordered=False
        ):
            entries[entry.name] = entry
            done = sum(entry is not None for entry in entries.values())
            report(done, len(entries))
        stores = {
            split: _gather(folder, settings, split, [entries[s.name] for s in members], stored)
            for split, members in splits.items()
            if members
        }
        _publish(folder, settings, stores)
    return stores


def _stored(folder: Path, settings: StoreSettings) -> dict[str, tuple[Store, StoredSubject]]:
    """The undamaged subjects of the present index, if it has these settings."""
    index = read_index(folder)
    if index is None or index[0] != settings:
        return {}
    stored = {}
    for store in index[1].values():
        damaged = set(damaged_entries(store))
        stored |= {e.name: (store, e) for e in store.subjects if e.name not in damaged}
    return stored


def _finished(
    folder: Path, subject: Subject, settings: StoreSettings, stored: dict
) -> StoredSubject | None:
    """The entry of `subject` if its slices are stored and undamaged, else None."""
    if subject.name in stored:
        entry = _if_unchanged(stored[subject.name][1], subject, settings)
        if entry is not None:
            return entry
    fields = read_checksummed(_part(folder, subject.name, settings)[0])
    if fields is None:
        return None
    entry = _if_unchanged(entry_from_json(fields), subject, settings)
    if entry is None or _part_images(folder, entry, settings) is None:
        return None
    return entry


def _if_unchanged(
    entry: StoredSubject, subject: Subject, settings: StoreSettings
) -> StoredSubject | None:
    """`entry`, with the files' dates, if it was made from the files of `subject`; else None."""
    files = _files(subject, settings)
    same_subject = (entry.name, entry.group, entry.patient) == (
        subject.name,
        subject.group,
        subject.patient,
    )
    if not same_subject or entry.sources.keys() != files.keys():
        return None
    sources = {key: entry.sources[key].if_unchanged(path) for key, path in files.items()}
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
    """Writes the part of `subject` in `folder`, its slices and record; returns its entry."""
    # Hashed before they are read: if a file changes meanwhile, its subject is made again.
    files = _files(subject, settings)
    sources = {path: _source(path) for path in set(files.values())}
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
        ranges=_tissue_ranges(prepared, settings.modalities),
        present=tuple(name in prepared.scales for name in settings.modalities),
        window=prepared.window,
        shape=tuple(int(size) for size in geometry.shape[:3]),
        affine=tuple(map(tuple, geometry.affine.tolist())),
        spacing=spacing_in_plane(geometry),
        sources={key: sources[path] for key, path in files.items()},
        crc=crc_of([images]),
    )
    write_atomic(record, with_checksum(asdict(entry)))
    return entry


def _tissue_ranges(prepared: PreparedSubject, modalities: Sequence[str]) -> dict:
    """The 0.1 and 99.9 percentiles of the brain's scaled values, by modality."""
    brain = prepared.brain
    return {
        name: tuple((np.percentile(prepared.volumes[name][brain], TISSUE_RANGE) / scale).tolist())
        if (scale := prepared.scales.get(name)) is not None
        else None
        for name in modalities
    }


def _source(path: Path) -> SourceFile:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    stat = path.stat()
    return SourceFile(path.name, stat.st_size, stat.st_mtime_ns, sha256_of_file(path))


def _slices(
    subject: Subject, prepared: PreparedSubject, settings: StoreSettings
) -> tuple[np.ndarray, list[int]]:
    """The slices with enough brain, as they are stored, and their z."""
    try:
        z = slices_with_brain(prepared.brain, prepared.window, settings.min_brain)
    except InputError as error:
        raise InputError(f"subject {subject.name}: {error}") from None
    images = network_stacks(prepared, settings.modalities, z)
    if settings.labels:
        labels = network_labels(prepared, read_labels(subject, prepared), z)
        images = np.concatenate([images, labels[..., None]], axis=-1)
    return np.clip(images, -MAX_STORED, MAX_STORED).astype(STORED), z.tolist()


def _part(folder: Path, name: str, settings: StoreSettings) -> tuple[Path, Path]:
    """The paths of a subject's record and slices, until its split is gathered."""
    key = digest([FORMAT, [asdict(settings), name]])[:16]
    return folder / "parts" / f"{key}.json", folder / "parts" / f"{key}.slices"


def _part_images(folder: Path, entry: StoredSubject, settings: StoreSettings) -> np.ndarray | None:
    """The slices in the part of `entry`; None if they are missing or damaged."""
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
    """Writes the array of `split`, the slices of `entries` in order; returns its store."""
    content = [asdict(settings), [[e.name, e.crc, e.slices] for e in entries]]
    key = digest([FORMAT, content])[:16]
    store = Store(folder / f"{split}-{key}.npy", settings, tuple(entries))
    present = [stored[e.name][0].path for e in entries if e.name in stored]
    if present == [store.path] * len(entries):
        return store  # its name is the digest of its content, and each entry was checked
    with atomic_writer(store.path) as file:
        file.write(store.header)
        for entry in entries:
            file.write(_images(folder, entry, settings, stored))
    return store


def _images(
    folder: Path, entry: StoredSubject, settings: StoreSettings, stored: dict
) -> np.ndarray:
    """The slices of `entry`, from the former array or from its part."""
    if entry.name in stored and stored[entry.name][1].crc == entry.crc:
        store = stored[entry.name][0]
        images = store.read(store.slice_indices(entry.name))[0]
    else:
        images = _part_images(folder, entry, settings)
    if images is None or crc_of([images]) != entry.crc:
        raise OSError(f"{folder}: slices of {entry.name} changed while they were copied")
    return images


def _publish(folder: Path, settings: StoreSettings, stores: dict[str, Store]) -> None:
    """Writes index.json of `stores`, and removes all other files from `folder`."""
    content = index_content(settings, stores).encode()
    index = folder / INDEX
    if not index.is_file() or index.read_bytes() != content:
        write_atomic(index, content)
    arrays = {store.path for store in stores.values()}
    # Names that begin with a dot: a run was killed while it wrote them.
    patterns = ("*.npy", ".*.npy.*", f".{INDEX}.*", "parts/*")
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path not in arrays:
            path.unlink(missing_ok=True)
