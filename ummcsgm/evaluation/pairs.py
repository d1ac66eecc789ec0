"""Which file of a folder is a prediction of which scan of a cohort.

A prediction has its truth's path below its folder, or the path that `complete` writes
it at; else its truth's file name, or SUBJECT-MODALITY, SUBJECT_MODALITY with any name
that the contrast has, wherever it lies. Upper and lower case are alike, `.nii` is
`.nii.gz`, and what `complete` adds for several results, like `_mean` or `_draw-03`, is
its kind.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ummcsgm.data.layouts.find import SearchResult, file_name
from ummcsgm.data.layouts.layout import CONTRASTS, Layout, Subject, contrast_of

KINDS = re.compile(r"(.+)_(mean|draw-\d+|sd|q\d+(?:p\d+)?)")
OTHER = ""  # in place of a modality: a segmentation or a mask
Image = tuple[str, str]  # subject and modality


@dataclass(frozen=True)
class Prediction:
    """A file that predicts `modality` of `subject`.

    `kind` is what its name adds: mean, draw-03; "" for the one answer.
    """

    path: Path
    subject: str
    modality: str
    kind: str


@dataclass(frozen=True)
class Pairing:
    """What of a folder predicts what.

    `unmatched` has a sentence for each file that predicts nothing or is one of two
    predictions of one thing; `others` are those that are no images to compare: how far
    an answer may be off (_sd, _q05), segmentations and masks.
    """

    predictions: tuple[Prediction, ...]
    unmatched: tuple[str, ...]
    others: tuple[Path, ...]


def pair(found: SearchResult, truth: Path, folder: Path) -> Pairing:
    """The NIfTI files below `folder`, paired with the scans that were `found` in
    `truth`, in the order of their paths."""
    paths, names = _addresses(found, truth)
    matched: dict[tuple[Image, str], list[Path]] = {}
    unmatched, others = [], []
    for path in _files(folder):
        images, kind = _match(path.relative_to(folder), paths, names)
        if len(images) != 1:
            unmatched.append(_sentence(path, images, truth))
        elif images[0][1] == OTHER or kind == "sd" or kind.startswith("q"):
            others.append(path)
        else:
            matched.setdefault((images[0], kind), []).append(path)
    predictions = []
    for ((subject, modality), kind), there in matched.items():
        if len(there) > 1:
            unmatched.append(
                f"{there[0]} and {there[1]} both predict {modality} of {subject}: keep one of them."
            )
        else:
            predictions.append(Prediction(there[0], subject, modality, kind))
    return Pairing(tuple(predictions), tuple(unmatched), tuple(others))


Addresses = dict[str, set[Image]]


def _addresses(found: SearchResult, truth: Path) -> tuple[Addresses, Addresses]:
    """Whose a path below the folder is, and whose a file name is."""
    paths: Addresses = {}
    names: Addresses = {}
    for subject in found.subjects:
        for modality, own, words in _scans(found.layout, subject):
            image = (subject.name, modality)
            for path in own:
                if path.is_absolute():
                    path = path.relative_to(os.path.abspath(truth))
                paths.setdefault(_stem(path), set()).add(image)
                names.setdefault(_stem(Path(path.name)), set()).add(image)
            for word in words:
                for joint in "-_":
                    name = f"{subject.name}{joint}{word}".casefold()
                    names.setdefault(name, set()).add(image)
    return paths, names


def _scans(layout: Layout, subject: Subject) -> list[tuple[str, list[Path], tuple[str, ...]]]:
    """Each modality of the subject: where it may lie, and how it may be called."""
    scans = []
    for modality, path in subject.files.items():
        own = [file_name(layout, subject, modality)]
        if modality not in subject.volume_indices:  # 4-D is everybody's
            own.append(path)
        contrast = contrast_of(modality)
        known = CONTRASTS[contrast] if contrast else ()
        scans.append((modality, own, (modality, layout.suffixes[modality], *known)))
    others = [path for path in (subject.segmentation, subject.mask) if path]
    return [*scans, (OTHER, others, ())]


def _match(path: Path, paths: Addresses, names: Addresses) -> tuple[list[Image], str]:
    """The images that the file at `path` may be of, and its kind."""
    stem = _stem(path)
    found = KINDS.fullmatch(stem)
    spelled = [(stem, ""), *([found.groups()] if found else [])]
    for own, kind in spelled:
        name = own.rsplit("/", 1)[-1]
        images = paths.get(own, names.get(name, set()))
        if images:
            return sorted(images), kind
    return [], ""


def _files(folder: Path) -> list[Path]:
    """The NIfTI files at any depth below `folder`, without hidden ones."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place, name)
            for name in sorted(files)
            if name.endswith((".nii", ".nii.gz")) and not name.startswith(".")
        ]
    return found


def _stem(path: Path) -> str:
    return path.as_posix().removesuffix(".gz").removesuffix(".nii").casefold()


def _sentence(path: Path, images: list[Image], truth: Path) -> str:
    if not images:
        return f"{path}: no scan in {truth} has this path, this name or is so called."
    several = " and ".join(f"{modality or 'a mask'} of {subject}" for subject, modality in images)
    return f"{path}: its name is that of {several}: give it its truth's path."
