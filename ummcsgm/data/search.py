"""A folder searched for subjects: in a named layout, or in whichever one it has."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ummcsgm.data.layouts import FOUR_D, Layout, Subject, contrast_of, fields_of
from ummcsgm.data.nifti import is_synthetic
from ummcsgm.files import read_json
from ummcsgm.types import InputError


class NoSubjectError(InputError):
    """A folder in which nothing reads as what was looked for."""


@dataclass(frozen=True)
class _Reading:
    """A file whose path reads as a pattern of the layout does."""

    path: Path
    word: str  # what stands for {modality}
    name: str  # of the subject
    home: tuple[str, str, str]  # group, patient and session


def find_subjects(
    folder: Path, layouts: Sequence[Layout]
) -> tuple[Layout, list[Subject]]:
    """Which of `layouts` the `folder` has, and its subjects by name with their files.

    `folder` may hold the groups, one group, subjects, or be one subject's own folder:
    what a pattern wants above is then read from the folder's own path.

    Raises:
        NoSubjectError: nothing reads as any of the layouts.
        InputError: there is no such folder; it reads as several
            layouts; one name stands for two subjects; or one modality lies there twice.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    files = list(_walk(folder, _depth(layouts), ()))
    found = []
    for layout in layouts:
        readings = _readings(folder, files, layout)
        if any(reading.word == FOUR_D for reading in readings):
            layout = _as_described(layout, folder)
        subjects = _subjects(readings, layout)
        if subjects:
            found.append((layout, subjects))
    if not found:
        raise NoSubjectError(_nothing_found(folder, layouts))
    if len(found) > 1:
        names = " and ".join(layout.name for layout, _ in found)
        files = " and ".join(str(_first(subjects)) for _, subjects in found)
        raise InputError(
            f"{folder} reads as the layouts {names}, as {files} show: name one with "
            "config.data.layout"
        )
    return found[0]


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


def _walk(folder: Path, depth: int, above: tuple[str, ...]) -> Iterator[tuple]:
    """The paths below `folder` of its NIfTI files, `depth` parts at most, in order."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})") from None
    for entry in entries:
        path = (*above, entry.name)
        if entry.name.startswith("."):
            continue  # also what macOS leaves beside each file, ._NAME
        if entry.is_dir() and depth > 1:
            yield from _walk(Path(entry.path), depth - 1, path)
        elif entry.name.endswith((".nii", ".nii.gz")) and not entry.is_dir():
            yield path  # a link to nothing too: reading it will say so


def _readings(folder: Path, files: list[tuple], layout: Layout) -> list[_Reading]:
    """The files that read as a pattern does, each as the first such pattern says.

    What a pattern wants above `folder` is read from its own path, where the pattern
    finds nothing otherwise.
    """
    found: dict[Path, _Reading] = {}
    for pattern, word in layout.patterns:
        expression = _expression(pattern, word, layout)
        depth = pattern.count("/") + 1
        for above in range(min(depth, len(folder.parts))):
            own = folder.parts[len(folder.parts) - above :]
            matches = {
                folder.joinpath(*path): match
                for path in files
                if len(path) == depth - above
                and (match := expression.fullmatch("/".join([*own, *path])))
            }
            for path, match in matches.items():
                reading = _reading(match, path, word, layout)
                _check_clear(found.setdefault(path, reading), reading, layout)
            if matches:
                break
    meant = {*layout.words.values(), *layout.segmentation, layout.mask, FOUR_D}
    readings = [found[path] for path in sorted(found)]
    return [one for one in readings if one.word in meant and _chosen(one.path, layout)]


def _reading(match: re.Match, path: Path, word: str, layout: Layout) -> _Reading:
    fields = {field: value or "" for field, value in match.groupdict().items()}
    group, session = fields.get("group", ""), fields.get("session", "")
    name = patient = fields["subject"]
    if session:
        name = f"{patient}_{session}"
    if layout.visit:
        patient = re.sub(layout.visit, "", patient)
    word = word if word else _word(fields["modality"], fields.get("entities", ""))
    return _Reading(path, word, name, (group, patient, session))


def _check_clear(one: _Reading, other: _Reading, layout: Layout) -> None:
    """The readings of a file agree on whose it is, and which modality."""
    images = {one.word, other.word} <= set(layout.words.values())
    if images and (one.name, one.word) != (other.name, other.word):
        raise InputError(
            f"{one.path} reads as {one.word} of subject {one.name} and as {other.word} "
            f"of {other.name}: make config.data.pattern tell them apart"
        )


def _word(suffix: str, entities: str) -> str:
    """What stands for the modality; in BIDS some entities are part of it."""
    values = dict(part.split("-", 1) for part in entities.split("_") if part)
    if suffix == "mask":
        kinds = [values[key] for key in ("label", "desc") if key in values]
        return "_".join([*kinds, suffix])
    return f"ce-gadolinium_{suffix}" if "ce" in values else suffix


def _chosen(path: Path, layout: Layout) -> bool:
    """Whether the file has none of the layout's entities with another value."""
    parts = path.name.split(".")[0].split("_")
    wanted = dict(entity.split("-", 1) for entity in layout.entities)
    values = dict(part.split("-", 1) for part in parts if "-" in part)
    return all(values.get(key, value) == value for key, value in wanted.items())


def _expression(pattern: str, word: str, layout: Layout) -> re.Pattern:
    """What matches the paths that `pattern` stands for; a field is the same twice."""
    # The longest first: a file is never taken for a modality whose name ends another.
    words = {*layout.words.values(), *layout.segmentation, layout.mask} - {""}
    bids = layout.name == "bids"
    suffixes = {one.rsplit("_", 1)[-1] if bids else one for one in words}
    choices = layout.fields | {
        "modality": "|".join(map(re.escape, sorted(suffixes, key=len)[::-1]))
    }
    stem = pattern.removesuffix(".gz")
    text, seen = "", set()
    for literal, field, _, _ in string.Formatter().parse(stem):
        text += re.escape(literal)
        if field is not None:
            again = field in seen
            text += f"(?P={field})" if again else f"(?P<{field}>{choices[field]})"
            seen.add(field)
    return re.compile(text + (r"(?:\.gz)?" if stem != pattern else ""))


def _subjects(readings: list[_Reading], layout: Layout) -> list[Subject]:
    """The subjects of `readings` that have an image, each once, by name."""
    own: dict[str, dict[str, _Reading]] = {}
    patients: dict[str, _Reading] = {}
    for reading in readings:
        if is_synthetic(reading.path):
            continue  # an earlier answer is not a scan
        files = own.setdefault(reading.name.casefold(), {})
        other = patients.setdefault(reading.home[1].casefold(), reading)
        unlike = [other] if other.home[1] != reading.home[1] else []
        mark = (reading.name, reading.home)
        unlike += [one for one in files.values() if (one.name, one.home) != mark]
        if unlike:
            raise InputError(
                f"subject {reading.name} is there twice: {unlike[0].path} and "
                f"{reading.path}"
            )
        if reading.word in files:
            raise InputError(
                f"{files[reading.word].path} and {reading.path} are one image of "
                f"subject {reading.name}; keep one of them"
                + ", or choose with config.data.entities"
                * (layout.name == "bids")
            )
        files[reading.word] = reading
    subjects = [_subject(list(own[key].values()), layout) for key in sorted(own)]
    return [subject for subject in subjects if subject.files]


def _subject(readings: list[_Reading], layout: Layout) -> Subject:
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
    return Subject(name, group, patient, files, volumes, segmentation, mask)


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
            f"{note} names {', '.join(map(str, told.values()))}, and none of them is "
            f"{lacking[0]}"
        )
    known = [name for name in layout.volumes if name not in lacking]
    volumes = {name: int(places[contrast_of(name)]) for name in known}
    return replace(layout, volumes=volumes)


def _first(subjects: list[Subject]) -> Path:
    return next(iter(subjects[0].files.values()))


def _nothing_found(folder: Path, layouts: Sequence[Layout]) -> str:
    """A sentence on what was looked for in `folder`, and what lies there."""
    files = (path for path in folder.rglob("*") if path.is_file())
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
