"""What is wrong with the input, before any minute of training: one sentence each.

A finding says what was seen, where, and what to do. On sound data there is none. What
is not told, as no measure of it was safe: volumes under each other's names where only
two modalities are there that look alike (`contrast` lists the pairs), and scans upside
down or back to front.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ummcsgm.data.crop import slices_with_brain
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import spacing_in_plane
from ummcsgm.data.store import StoreSettings
from ummcsgm.data.subjects import view_window
from ummcsgm.qc.agreement import of_modalities
from ummcsgm.qc.cohort import of_cohort
from ummcsgm.qc.findings import FEWEST, SEVERITIES, Examination, Finding
from ummcsgm.qc.scans import (
    MASK,
    SEGMENTATION,
    Scan,
    Told,
    masked,
    of_segmentation,
    on_one_grid,
    read_scans,
)
from ummcsgm.qc.symptoms import Symptom, empty_slices, of_grid, of_volume
from ummcsgm.types import InputError
from ummcsgm.utils.pool import map_in_processes

__all__ = ["SEVERITIES", "Finding", "examine_cohort", "examine_subject"]


def examine_subject(
    subject: Subject, modalities: Sequence[str], settings: StoreSettings | None = None
) -> list[Finding]:
    """What is wrong with the files of `subject`, each of which is read once.

    With the `settings` of a run, also what would keep it from preparing the subject.
    """
    return _examine(modalities, settings, subject).findings


def examine_cohort(
    subjects: Sequence[Subject],
    modalities: Sequence[str],
    settings: StoreSettings | None = None,
    *,
    processes: int,
    progress: Callable[[int, int], None],
) -> list[Finding]:
    """What is wrong with the subjects, each by itself and all of them together.

    The findings are in the order of the subjects, whatever the number of processes;
    `progress(done, total)` is called after each subject. `settings` are those of the
    run that is to be.
    """
    examinations = []
    examine = partial(_examine, tuple(modalities), settings)
    for examination in map_in_processes(examine, subjects, processes):
        examinations.append(examination)
        progress(len(examinations), len(subjects))
    findings = [finding for each in examinations for finding in each.findings]
    spacing = 0.0 if settings is None else settings.view.spacing
    return findings + list(of_cohort(subjects, examinations, modalities, spacing))


def _examine(
    modalities: Sequence[str], settings: StoreSettings | None, subject: Subject
) -> Examination:
    """All that is wrong with one subject; a file that fails is judged no further."""
    told = [(name, _missing(name)) for name in modalities if name not in subject.files]
    scans, unreadable = read_scans(subject, modalities)
    scans, off_grid = on_one_grid(scans)
    scans, off_mask = masked(subject, scans)
    told += unreadable + off_grid + off_mask
    told += [(SEGMENTATION, symptom) for symptom in of_segmentation(subject, scans)]
    for name, scan in scans.items():
        own = of_volume(scan.volume, scan.brain, scan.background, scan.geometry)
        told += [(name, symptom) for symptom in own]
    for scan in list(scans.values())[:1]:
        told += [("", symptom) for symptom in of_grid(scan.geometry)]
    told += _unfit(subject, scans, settings, told)
    told += _between(scans, told)
    findings = [_finding(subject, name, symptom) for name, symptom in told]
    digests = {name: _digest(scan) for name, scan in scans.items()}
    pixels = [spacing_in_plane(scan.geometry) for scan in scans.values()]
    return Examination(findings, digests, pixels[0] if pixels else None)


def _between(scans: dict[str, Scan], told: Told) -> Told:
    """What is wrong between those of `scans` that show a brain, by what was told."""
    blank = {name for name, s in told if s.code in ("constant", "not_stripped")}
    brains = {name: scan for name, scan in scans.items() if name not in blank}
    between = list(of_modalities(brains))
    moved = {n for n, s in between if s.code in ("misregistered", "mirrored")}
    still = {name: scan for name, scan in brains.items() if name not in moved}
    return _empty(still) + between


def _unfit(
    subject: Subject, scans: dict[str, Scan], settings: StoreSettings | None, told: Told
) -> Told:
    """What keeps a run with `settings` from preparing a subject that it would train on.

    Nothing where it was told already why the brain is not where it seems to be.
    """
    if settings is None or len(subject.files) < FEWEST:
        return []
    if settings.view.masked and subject.mask is None:
        what = (
            "has no brain mask, which config.data.mask asks for: add it, or leave "
            'config.data.mask "" if what is not brain is 0 in all scans'
        )
        return [(MASK, Symptom("stop", "missing", what))]
    vague = any(name == MASK or s.code in ("background", "not_stripped") for name, s in told)
    if not scans or vague:
        return []
    brain = np.logical_or.reduce([scan.inside for scan in scans.values()])
    geometry = next(iter(scans.values())).geometry
    try:
        window = view_window(brain, geometry, settings.view)
        slices_with_brain(brain, window, settings.min_brain)
    except InputError as error:
        what = f"cannot be prepared with this config: {error}"
        return [("", Symptom("stop", "unfit", what))]
    return []


def _missing(modality: str) -> Symptom:
    what = f"has no {modality}: it is trained and tested on with the others"
    return Symptom("note", "missing", what)


def _empty(scans: dict[str, Scan]) -> Told:
    """Which of `scans`, on one grid, have empty slices amid the brain."""
    if not scans:
        return []
    brain = np.logical_or.reduce([scan.brain for scan in scans.values()])
    area = np.count_nonzero(brain, axis=(1, 2))
    found = {name: empty_slices(scan.brain, area) for name, scan in scans.items()}
    return [(name, symptom) for name, symptom in found.items() if symptom is not None]


def _finding(subject: Subject, modality: str, symptom: Symptom) -> Finding:
    """The finding of `symptom` in a modality, or in the subject where that is ""."""
    others = {MASK: subject.mask, SEGMENTATION: subject.segmentation}
    path = (others | subject.files).get(modality)
    volume = subject.volume_indices.get(modality)
    place = f"subject {subject.name}" if path is None else str(path)
    place += "" if volume is None or path is None else f", volume {volume}"
    joint = " " if path is None else ": "
    sentence = f"{place}{joint}{symptom.what}"
    about = (symptom.severity, subject.name, modality, path, symptom.code)
    return Finding(*about, sentence)


def _digest(scan: Scan) -> str:
    """The same for the same image, however the files' headers and frames differ."""
    lines = [scan.brain.any(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    ends = [np.flatnonzero(line)[[0, -1]] for line in lines]
    box = tuple(slice(first, last + 1) for first, last in ends)
    image = np.ascontiguousarray(scan.volume[box])
    return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
