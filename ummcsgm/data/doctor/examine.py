"""What is wrong with the input, before any minute of training: one sentence each.

A finding says what was seen, where, and what to do. On sound data there is none.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ummcsgm.data.doctor.agreement import of_modalities
from ummcsgm.data.doctor.scans import (
    MASK,
    SEGMENTATION,
    Scan,
    masked,
    of_segmentation,
    on_one_grid,
    read_scans,
)
from ummcsgm.data.doctor.symptoms import Symptom, empty_slices, of_grid, of_volume
from ummcsgm.data.layouts import Subject
from ummcsgm.data.workers import each_in_order

SEVERITIES = ("stop", "warn", "note")  # would stop or poison a run; may; is to know
FEWEST = 2  # modalities with which a subject can be trained on


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do about it.

    `subject`, `modality` are "" and `path` is None where it is not about one of these.
    """

    severity: str  # one of SEVERITIES
    subject: str
    modality: str  # or "mask" or "segmentation"
    path: Path | None
    code: str
    sentence: str


@dataclass(frozen=True)
class Examination:
    """What was found in one subject, and what it is compared with others by."""

    findings: list[Finding]
    digests: dict[str, str]  # by modality, for those that can be trained on


def examine_subject(subject: Subject, modalities: Sequence[str]) -> list[Finding]:
    """What is wrong with the files of `subject`, each of which is read once."""
    return _examine(modalities, subject).findings


def examine_cohort(
    subjects: Sequence[Subject],
    modalities: Sequence[str],
    *,
    processes: int,
    progress: Callable[[int, int], None],
) -> list[Finding]:
    """What is wrong with the subjects, each by itself and all of them together.

    The findings are in the order of the subjects, whatever the number of processes;
    `progress(done, total)` is called after each subject.
    """
    examinations = []
    examine = partial(_examine, tuple(modalities))
    for examination in each_in_order(examine, subjects, processes):
        examinations.append(examination)
        progress(len(examinations), len(subjects))
    findings = [finding for each in examinations for finding in each.findings]
    findings += _lacking(subjects, modalities)
    findings += _without_mask(subjects)
    findings += _untrainable(subjects, examinations)
    return findings + list(_leaks(subjects, examinations))


def _examine(modalities: Sequence[str], subject: Subject) -> Examination:
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
    blank = {name for name, s in told if s.code in ("constant", "not_stripped")}
    brains = {name: scan for name, scan in scans.items() if name not in blank}
    between = list(of_modalities(brains))
    moved = {name for name, symptom in between if symptom.code == "misregistered"}
    told += _empty({name: scan for name, scan in brains.items() if name not in moved})
    told += between
    findings = [_finding(subject, name, symptom) for name, symptom in told]
    return Examination(findings, {name: _digest(scan) for name, scan in scans.items()})


def _missing(modality: str) -> Symptom:
    what = f"has no {modality}: it is trained and tested on with the others"
    return Symptom("note", "missing", what)


def _empty(scans: dict[str, Scan]) -> list[tuple[str, Symptom]]:
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
    volume = subject.volumes.get(modality)
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


def _lacking(subjects: Sequence[Subject], modalities: Sequence[str]) -> list[Finding]:
    """One finding for each modality that some or all of the subjects lack."""
    findings = []
    for name in modalities:
        lacking = [s.name for s in subjects if name not in s.files]
        if len(lacking) == len(subjects):
            sentence = (
                f"no subject has {name}: correct config.data.modalities or the layout"
            )
            findings.append(Finding("stop", "", name, None, "missing", sentence))
        elif lacking:
            sentence = (
                f"{len(lacking)} of {len(subjects)} subjects have no {name}, the first "
                f"is {lacking[0]}; they train with what they have"
            )
            findings.append(Finding("note", "", name, None, "missing", sentence))
    return findings


def _without_mask(subjects: Sequence[Subject]) -> list[Finding]:
    """A finding for each subject without a mask where others have one."""
    if not any(subject.mask for subject in subjects):
        return []
    sentence = "subject {} has no brain mask, and others have: add it, or remove all"
    return [
        Finding("stop", s.name, MASK, None, "missing", sentence.format(s.name))
        for s in subjects
        if s.mask is None
    ]


def _untrainable(
    subjects: Sequence[Subject], examinations: Sequence[Examination]
) -> list[Finding]:
    """The subjects with too few modalities to learn one from another."""
    few = [
        (subject, len(examination.digests))
        for subject, examination in zip(subjects, examinations, strict=True)
        if len(examination.digests) < FEWEST
    ]
    findings = [
        Finding(
            "warn",
            subject.name,
            "",
            None,
            "too_few",
            f"subject {subject.name} has {count} usable modalities and cannot be "
            f"trained on, wanted {FEWEST} or more: repair or remove it",
        )
        for subject, count in few
    ]
    if len(few) == len(subjects):
        sentence = f"none of the {len(subjects)} subjects can be trained on: see above"
        findings.append(Finding("stop", "", "", None, "unusable", sentence))
    return findings


def _leaks(
    subjects: Sequence[Subject], examinations: Sequence[Examination]
) -> Iterator[Finding]:
    """One finding for each image that two patients have."""
    owners: dict[str, list[tuple[Subject, str]]] = defaultdict(list)
    for subject, examination in zip(subjects, examinations, strict=True):
        for name, digest in examination.digests.items():
            owners[digest].append((subject, name))
    for (first, own), *others in owners.values():
        for subject, name in others:
            if subject.patient != first.patient:
                sentence = (
                    f"{subject.files[name]}: is the same image as {first.files[own]}, "
                    "of another patient, so one may be tested on what it was trained "
                    "on: remove one of them, or give both one patient"
                )
                path = subject.files[name]
                yield Finding("stop", subject.name, name, path, "leakage", sentence)
