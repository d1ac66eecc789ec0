"""The checks of all subjects together, and of the folder that was searched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from ummcsgm.data.layouts.find import SearchResult
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.qc.findings import MIN_MODALITIES, Examination, Finding

MAX_LISTED = 5  # unused files; of more, only their number
MAX_RATIO = 1.2  # of two subjects' pixels: above it the network sees brains of two sizes


def check_search(found: SearchResult) -> Iterator[Finding]:
    """The findings on the folder that was searched, other than on its subjects."""
    for name, sentence in found.ambiguous.items():
        yield Finding("stop", name, "", None, "ambiguous", sentence)
    for folder, sentence in found.unreadable.items():
        yield Finding("stop", "", "", Path(folder), "unreadable", sentence)
    unused_files = found.unused_files
    advice = (
        f"as no scan of the layout {found.layout.name}: rename it, or name a pattern with "
        "config.data.pattern"
    )
    for path in unused_files[:MAX_LISTED]:
        yield Finding("warn", "", "", path, "unknown_file", f"{path}: reads {advice}")
    more = len(unused_files) - MAX_LISTED
    if more > 0:
        verb = "file reads" if more == 1 else "files read"
        sentence = f"{more} more {verb}, like {unused_files[MAX_LISTED - 1]}, {advice}"
        yield Finding("warn", "", "", None, "unknown_file", sentence)


def check_cohort(
    examinations: Sequence[Examination], modalities: Sequence[str], spacing: float
) -> Iterator[Finding]:
    """The findings on all subjects together; `spacing` is config.data.spacing."""
    yield from _check_missing([e.subject for e in examinations], modalities)
    if not spacing:
        yield from _check_spacing(examinations)
    yield from _check_trainable(examinations)
    yield from _check_leakage(examinations)


def _check_missing(subjects: Sequence[Subject], modalities: Sequence[str]) -> Iterator[Finding]:
    """A finding for each modality that some or all of the subjects lack."""
    for name in modalities:
        lacking = [subject.name for subject in subjects if name not in subject.files]
        if lacking and len(lacking) == len(subjects):
            sentence = f"no subject has {name}: correct config.data.modalities or the layout"
            yield Finding("stop", "", name, None, "missing", sentence)
        elif lacking:
            sentence = (
                f"{len(lacking)} of {len(subjects)} subjects have no {name}, the first "
                f"is {lacking[0]}; they train with what they have"
            )
            yield Finding("note", "", name, None, "missing", sentence)


def _check_spacing(examinations: Sequence[Examination]) -> Iterator[Finding]:
    """A finding if pixels differ so much that brains seem large or small."""
    known = [(e.pixel, e.subject.name) for e in examinations if e.pixel is not None]
    if not known:
        return
    ends = [
        (min(known, key=lambda item: item[0][k]), max(known, key=lambda item: item[0][k]))
        for k in range(2)
    ]
    ratios = [ends[k][1][0][k] / ends[k][0][0][k] for k in range(2)]
    if max(ratios) <= MAX_RATIO:
        return
    both = ends[ratios.index(max(ratios))]
    shown = [f"{dx:.3g} x {dy:.3g} mm in subject {name}" for (dy, dx), name in both]
    sentence = (
        f"voxels in the axial plane are from {shown[0]} to {shown[1]}, and a brain "
        "looks as much larger or smaller: set config.data.spacing to one size for all, "
        "or resample the scans"
    )
    yield Finding("warn", "", "", None, "spacing", sentence)


def _check_trainable(examinations: Sequence[Examination]) -> Iterator[Finding]:
    """A finding for each subject with too few modalities to learn one from another."""
    few = [e for e in examinations if len(e.digests) < MIN_MODALITIES]
    for examination in few:
        name = examination.subject.name
        sentence = (
            f"subject {name} has {len(examination.digests)} usable modalities and cannot be "
            f"trained on, wanted {MIN_MODALITIES} or more: repair or remove it"
        )
        yield Finding("warn", name, "", None, "too_few", sentence)
    if len(few) == len(examinations):
        sentence = f"none of the {len(few)} subjects can be trained on: see above"
        yield Finding("stop", "", "", None, "unusable", sentence)


def _check_leakage(examinations: Sequence[Examination]) -> Iterator[Finding]:
    """A finding for each image that two patients have."""
    owners: dict[str, list[tuple[Subject, str]]] = defaultdict(list)
    for examination in examinations:
        for name, digest in examination.digests.items():
            owners[digest].append((examination.subject, name))
    for (first, first_name), *others in owners.values():
        for subject, name in others:
            if subject.patient != first.patient:
                path = subject.files[name]
                sentence = (
                    f"{path}: is the same image as {first.files[first_name]}, of another "
                    "patient, so one may be tested on what it was trained on: remove "
                    "one of them, or give both one patient"
                )
                yield Finding("stop", subject.name, name, path, "leakage", sentence)
