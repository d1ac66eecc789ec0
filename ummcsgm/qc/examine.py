"""The doctor: what is wrong with the input, before any training, one sentence each.

A finding says what was seen, where, and what to do. On sound data there is none. Not found, because
no measure of it was safe: volumes under each other's names where only two modalities are present
that look alike (`contrast` lists the pairs), and scans upside down or back to front.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ummcsgm.data.crop import brain_mask, slices_with_brain
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.nifti import spacing_in_plane
from ummcsgm.data.store import StoreSettings
from ummcsgm.data.subjects import view_window
from ummcsgm.qc.cohort_checks import check_cohort
from ummcsgm.qc.findings import MIN_MODALITIES, Examination, Finding, NamedProblems, Problem
from ummcsgm.qc.modality_checks import check_modalities
from ummcsgm.qc.scans import (
    MASK,
    SEGMENTATION,
    Scan,
    check_segmentation,
    on_one_grid,
    read_scans,
    within_mask,
)
from ummcsgm.qc.volume_checks import check_empty_slices, check_grid, check_volume
from ummcsgm.types import InputError
from ummcsgm.utils.pool import map_in_processes


def examine_subject(
    subject: Subject, modalities: Sequence[str], settings: StoreSettings | None = None
) -> list[Finding]:
    """The findings on the files of `subject`, each of which is read once.

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
    """The findings on each of the subjects, and on all of them together.

    They are in the order of the subjects, whatever the number of processes; `progress(done, total)`
    is called after each subject. `settings` are those of the planned run.
    """
    examinations = []
    examine = partial(_examine, tuple(modalities), settings)
    for examination in map_in_processes(examine, subjects, processes):
        examinations.append(examination)
        progress(len(examinations), len(subjects))
    findings = [finding for examination in examinations for finding in examination.findings]
    spacing = 0.0 if settings is None else settings.view.spacing
    return findings + list(check_cohort(examinations, modalities, spacing))


def _examine(
    modalities: Sequence[str], settings: StoreSettings | None, subject: Subject
) -> Examination:
    """The examination of one subject; a file that fails a check is examined no further."""
    problems = []
    for name in modalities:
        if name not in subject.files:
            text = f"has no {name}: it is trained and tested on with the others"
            problems.append((name, Problem("note", "missing", text)))
    scans, unreadable = read_scans(subject, modalities)
    scans, off_grid = on_one_grid(scans)
    scans, off_mask = within_mask(subject, scans)
    problems += unreadable + off_grid + off_mask
    problems += [(SEGMENTATION, problem) for problem in check_segmentation(subject, scans)]
    for name, scan in scans.items():
        found = check_volume(scan.volume, scan.brain, scan.background, scan.geometry)
        problems += [(name, problem) for problem in found]
    for scan in list(scans.values())[:1]:
        problems += [("", problem) for problem in check_grid(scan.geometry)]
    problems += _check_preparation(subject, scans, settings, problems)
    problems += _check_between(scans, problems)
    findings = [_finding(subject, name, problem) for name, problem in problems]
    digests = {name: _digest(scan) for name, scan in scans.items()}
    pixels = [spacing_in_plane(scan.geometry) for scan in scans.values()]
    return Examination(subject, findings, digests, pixels[0] if pixels else None)


def _check_between(scans: dict[str, Scan], problems: NamedProblems) -> NamedProblems:
    """The problems between those of `scans` that show a brain, by the `problems` so far."""
    no_brain = {name for name, p in problems if p.code in ("constant", "not_stripped")}
    brains = {name: scan for name, scan in scans.items() if name not in no_brain}
    between = list(check_modalities(brains))
    moved = {name for name, p in between if p.code in ("misregistered", "mirrored")}
    aligned = {name: scan.brain for name, scan in brains.items() if name not in moved}
    if not aligned:
        return between
    area = np.count_nonzero(brain_mask(aligned.values()), axis=(1, 2))
    found = [(name, check_empty_slices(brain, area)) for name, brain in aligned.items()]
    return [(name, problem) for name, problem in found if problem is not None] + between


def _check_preparation(
    subject: Subject,
    scans: dict[str, Scan],
    settings: StoreSettings | None,
    problems: NamedProblems,
) -> NamedProblems:
    """The problem that keeps a run with `settings` from preparing a subject.

    Empty if one of `problems` already explains why the brain is not found.
    """
    if settings is None or len(subject.files) < MIN_MODALITIES:
        return []
    if settings.view.masked and subject.mask is None:
        text = (
            "has no brain mask, which config.data.mask asks for: add it, or set "
            'config.data.mask to "" if what is not brain is 0 in all scans'
        )
        return [(MASK, Problem("stop", "missing", text))]
    known = any(n == MASK or p.code in ("background", "not_stripped") for n, p in problems)
    if not scans or known:
        return []
    brain = brain_mask(scan.inside for scan in scans.values())
    geometry = next(iter(scans.values())).geometry
    try:
        window = view_window(brain, geometry, settings.view)
        slices_with_brain(brain, window, settings.min_brain)
    except InputError as error:
        text = f"cannot be prepared with this config: {error}"
        return [("", Problem("stop", "unfit", text))]
    return []


def _finding(subject: Subject, modality: str, problem: Problem) -> Finding:
    """The finding of a problem of a modality, or of the subject where that is ""."""
    files = {MASK: subject.mask, SEGMENTATION: subject.segmentation} | subject.files
    path, index = files.get(modality), subject.volume_indices.get(modality)
    if path is None:
        sentence = f"subject {subject.name} {problem.text}"
    elif index is None:
        sentence = f"{path}: {problem.text}"
    else:
        sentence = f"{path}, volume {index}: {problem.text}"
    return Finding(problem.severity, subject.name, modality, path, problem.code, sentence)


def _digest(scan: Scan) -> str:
    """The same for the same image, however the files' headers and frames differ."""
    lines = [scan.brain.any(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    ends = [np.flatnonzero(line)[[0, -1]] for line in lines]
    box = tuple(slice(first, last + 1) for first, last in ends)
    image = np.ascontiguousarray(scan.volume[box])
    return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
