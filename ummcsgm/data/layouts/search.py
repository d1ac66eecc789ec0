"""A folder searched for subjects: in a named layout, or in whichever one it has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ummcsgm.data.layouts.naming import (
    CAVITIES,
    FOUR_D,
    OTHERS,
    TUMOUR,
    Layout,
    Subject,
    contrast_of,
)
from ummcsgm.data.layouts.patterns import fields_of
from ummcsgm.data.layouts.readings import Reading, chosen, is_image, is_meant, is_wanted, read_paths
from ummcsgm.data.nifti import is_synthetic
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json


class NoSubjectError(InputError):
    """A folder in which nothing reads as what was looked for."""


@dataclass(frozen=True)
class Found:
    """The subjects in a folder, and all else that lies there.

    `refused` has a sentence for each subject that is none of `subjects` because it is
    ambiguous, by name, and for each folder that cannot be read, by path. `leftover` are
    the NIfTI files that are nobody's: they read as no pattern, are of a modality that
    the layout has not, or a segmentation or mask without images. Neither earlier
    answers are among them, nor what the layout's entities did not choose.
    """

    layout: Layout
    subjects: list[Subject]  # by name
    refused: dict[str, str]
    leftover: tuple[Path, ...]  # sorted


def find_subjects(folder: Path, layouts: Sequence[Layout], others: Sequence[Layout] = ()) -> Found:
    """Which of `layouts` the `folder` has, and its subjects by name with their files.

    `folder` may hold the groups, one group, subjects, or be one subject's own folder:
    what a pattern wants above is then read from the folder's own path. `others` count
    where nothing reads as any of `layouts`.

    Raises:
        NoSubjectError: nothing reads as any of the layouts, and all could be read.
        InputError: there is no such folder, it cannot be read, or it reads as several
            layouts.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    unreadable: dict[str, str] = {}
    walked = list(_walk(folder, _depth([*layouts, *others]), (), unreadable))
    if str(folder) in unreadable:
        raise InputError(unreadable[str(folder)])
    # An earlier answer is not a scan.
    files = [path for path in walked if not is_synthetic(folder.joinpath(*path))]
    found = _found(folder, files, layouts) or _found(folder, files, others)
    if len(found) > 1:
        names = " and ".join(one.layout.name for one, _ in found)
        examples = " and ".join(str(example) for _, example in found)
        raise InputError(
            f"{folder} reads as the layouts {names}, as {examples} show: name one with "
            "config.data.layout"
        )
    if found:
        whole, _ = found[0]
        return replace(whole, refused=whole.refused | unreadable)
    if not unreadable:
        raise NoSubjectError(_nothing_found(folder, [*layouts, *others]))
    paths = tuple(sorted(folder.joinpath(*path) for path in files))
    return Found(layouts[0], [], unreadable, paths)


def file_name(layout: Layout, subject: Subject, modality: str) -> Path:
    """Where `modality` of `subject` would lie, relative to the folder of the data."""
    session = subject.name[len(subject.patient) + 1 :]
    values = {"group": subject.group, "subject": subject.name, "session": session}
    word = layout.words[modality]
    fitting = [pattern for pattern, own in layout.written if own in ("", word)]
    if session and any("session" in fields_of(pattern) for pattern in fitting):
        values["subject"] = subject.patient
    values |= {"modality": word, "entities": ""}
    whole = [
        pattern
        for pattern in fitting
        if all(values[field] for field in fields_of(pattern) if field != "entities")
    ]
    return Path(whole[0].format(**values))


def _depth(layouts: Sequence[Layout]) -> int:
    return max(p.count("/") + 1 for layout in layouts for p, _ in layout.patterns)


def _walk(
    folder: Path, depth: int, above: tuple[str, ...], unreadable: dict[str, str]
) -> Iterator[tuple[str, ...]]:
    """The paths below `folder` of its NIfTI files, `depth` parts at most, in order.

    A folder that cannot be read is told of in `unreadable`.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        unreadable[str(folder)] = f"{folder} cannot be read ({error.strerror})"
        return
    for entry in entries:
        path = (*above, entry.name)
        if entry.name.startswith("."):
            continue  # also what macOS leaves beside each file, ._NAME
        below = os.path.isdir(entry.path)
        if below and depth > 1:
            yield from _walk(Path(entry.path), depth - 1, path, unreadable)
        elif entry.name.endswith((".nii", ".nii.gz")) and not below:
            yield path  # a link to nothing too: reading it will say so


def _found(
    folder: Path, files: list[tuple[str, ...]], layouts: Sequence[Layout]
) -> list[tuple[Found, Path]]:
    """What there is in each of the layouts that there are, and a file that shows it."""
    found = []
    for layout in layouts:
        readings, refused = read_paths(folder, files, layout)
        picked = chosen([one for one in readings if is_meant(one, layout)], layout)
        if any(one.word == FOUR_D for one in picked):
            layout = _as_described(layout, folder)
        subjects, ambiguous = _subjects(picked, layout, refused)
        names = {one.name for one in subjects} | set(ambiguous)
        if names:
            own = [one for one in readings if one.name in names]
            example = next(one.path for one in own if is_image(one, layout))
            leftover = _leftover(folder, files, own, layout)
            found.append((Found(layout, subjects, ambiguous, leftover), example))
    return found


def _leftover(
    folder: Path, files: list[tuple[str, ...]], own: list[Reading], layout: Layout
) -> tuple[Path, ...]:
    """The files that are none of the subjects' `own`, nor left aside by entities."""
    used = {one.path for one in own if is_meant(one, layout)}
    used |= {one.path for one in own if one.word.endswith("mask")}  # of something else
    paths = sorted(folder.joinpath(*path) for path in files)
    return tuple(p for p in paths if p not in used and is_wanted(p, "", layout))


def _subjects(
    readings: list[Reading], layout: Layout, refused: dict[str, str]
) -> tuple[list[Subject], dict[str, str]]:
    """The subjects of `readings` that have an image, by name.

    Also why others have none, by name: those of `refused`, and who is there twice.
    """
    own: dict[str, list[Reading]] = {}
    patients: dict[str, list[Reading]] = {}
    for reading in readings:
        own.setdefault(reading.name.casefold(), []).append(reading)
        patients.setdefault(reading.home[1].casefold(), []).append(reading)
    subjects, ambiguous = [], dict(refused)
    for key in sorted(own):
        names = {one.name for one in own[key]}
        if names & set(refused):
            ambiguous |= dict.fromkeys(names, refused[min(names & set(refused))])
        elif any(is_image(one, layout) for one in own[key]):
            patient = patients[own[key][0].home[1].casefold()]
            sentence = _quarrel(own[key], patient, layout)
            ambiguous |= dict.fromkeys(sorted(names), sentence) if sentence else {}
            subjects += [] if sentence else [_subject(own[key], layout)]
    return [one for one in subjects if one.files], dict(sorted(ambiguous.items()))


def _quarrel(readings: list[Reading], patient: list[Reading], layout: Layout) -> str | None:
    """Why one name stands for two subjects, or one image lies there twice.

    `readings` are of one name, `patient` those of all that are one patient's, but for
    upper and lower case.
    """
    first = readings[0]
    unlike = [one for one in patient if one.home[1] != first.home[1]]
    mark = (first.name, first.home)
    unlike += [one for one in readings if (one.name, one.home) != mark]
    if unlike:
        paths = sorted([first.path, unlike[0].path])
        return f"subject {first.name} is there twice: {paths[0]} and {paths[1]}"
    files: dict[str, Reading] = {}
    for reading in readings:
        other = files.setdefault(reading.word, reading)
        if other is not reading:
            return (
                f"{other.path} and {reading.path} are one image of subject "
                f"{reading.name}; keep one of them"
                + ", or choose with config.data.entities"
                * (layout.name == "bids")
            )
    return None


def _subject(readings: list[Reading], layout: Layout) -> Subject:
    """The subject whose files are `readings`."""
    paths = {reading.word: reading.path for reading in readings}
    if layout.volumes:
        whole = paths.get(FOUR_D)
        files = dict.fromkeys(layout.volumes, whole) if whole else {}
    else:
        words = layout.words.items()
        files = {name: paths[word] for name, word in words if word in paths}
    segmentation = next((paths[w] for w in layout.segmentation if w in paths), None)
    group, patient, _ = readings[0].home
    mask = paths.get(layout.mask) if layout.mask else None
    volumes = {name: layout.volumes[name] for name in layout.volumes if name in files}
    name = readings[0].name
    values = (OTHERS.get(layout.name, TUMOUR), CAVITIES.get(layout.name))
    return Subject(name, group, patient, files, volumes, segmentation, mask, *values)


def _as_described(layout: Layout, folder: Path) -> Layout:
    """`layout` with the volumes that a dataset.json of the folder tells of.

    Raises:
        InputError: it names no volume for a modality, and one that nobody knows.
    """
    notes = [place / "dataset.json" for place in (folder, folder.parent)]
    note = next((path for path in notes if path.is_file()), None)
    content = read_json(note) if note else None
    told = content.get("modality") if isinstance(content, dict) else None
    if not isinstance(told, dict):
        return layout
    odd = [place for place in told if not re.fullmatch("[0-9]+", str(place))]
    if odd:
        raise InputError(f"{note} calls a volume {odd[0]!r}; wanted numbers from 0 on")
    places = {contrast_of(str(told[place])): place for place in told}
    lacking = [name for name in layout.volumes if contrast_of(name) not in places]
    if lacking and (None in places or len(lacking) == len(layout.volumes)):
        raise InputError(
            f"{note} names {', '.join(map(str, told.values()))}, and none of them is {lacking[0]}"
        )
    known = [name for name in layout.volumes if name not in lacking]
    volumes = {name: int(places[contrast_of(name)]) for name in known}
    return replace(layout, volumes=volumes)


def _nothing_found(folder: Path, layouts: Sequence[Layout]) -> str:
    """A sentence on what was looked for in `folder`, and what lies there."""
    walked = os.walk(folder)  # which passes over what it cannot read
    files = (Path(place, name) for place, _, names in walked for name in names)
    example = next(files, None)
    seen = f"for example {example.relative_to(folder)}" if example else "no files"
    if len(layouts) > 1:
        names = ", ".join(layout.name for layout in layouts)
        wanted = f"the layouts {names} (or set config.data.pattern)"
    else:
        patterns = " or ".join(pattern for pattern, _ in layouts[0].patterns)
        words = ", ".join(layouts[0].words.values())
        wanted = f"{patterns} with {{modality}} one of {words}"
    chosen = {entity for layout in layouts for entity in layout.entities}
    if chosen:
        wanted += f", of config.data.entities {', '.join(sorted(chosen))}"
    return f"{folder}: no subject found; looked for {wanted}, and saw {seen}"
