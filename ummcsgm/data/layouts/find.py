"""A folder searched for subjects: in a given layout, or in whichever one it has."""

from __future__ import annotations

import os
import re
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ummcsgm.data.layouts.layout import FOUR_D, Layout, Subject, contrast_of
from ummcsgm.data.layouts.pattern import fields_of
from ummcsgm.data.nifti import is_synthetic
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json

MASK_ENTITIES = ("label", "desc")  # of BIDS: they say which mask a mask is
Parts = tuple[str, ...]  # of a path relative to the searched folder


class NoSubjectError(InputError):
    """A folder in which no path fits any of the layouts."""


@dataclass(frozen=True)
class SearchResult:
    """The subjects in a folder, and all else that lies there.

    `ambiguous` has, by name, a sentence for each subject that is not in `subjects` because
    several files may be the same image; `unreadable` has, by path, one for each folder that
    cannot be read. `unused_files` are NIfTI files that belong to no subject: they fit no
    pattern, have an unknown modality, or are a segmentation or mask without images. Earlier
    completions and files that the layout's entities leave out are not among them.
    """

    layout: Layout
    subjects: list[Subject]  # by name
    ambiguous: dict[str, str]
    unreadable: dict[str, str]
    unused_files: tuple[Path, ...]  # sorted

    @property
    def problems(self) -> dict[str, str]:
        """A sentence for each ambiguous subject and each unreadable folder."""
        return self.ambiguous | self.unreadable


@dataclass(frozen=True)
class Match:
    """A file whose path fits a pattern of the layout."""

    path: Path
    suffix: str  # what stands for {modality}
    subject: str
    group: str
    patient: str
    session: str

    @property
    def identity(self) -> Parts:
        """What all files of one subject share."""
        return self.subject, self.group, self.patient, self.session

    def is_image(self, layout: Layout) -> bool:
        """Whether the file holds one modality of the layout, or all of them."""
        return self.suffix in (*layout.suffixes.values(), FOUR_D)

    def is_known(self, layout: Layout) -> bool:
        """Whether the file is an image, a segmentation or the mask of the layout."""
        return self.is_image(layout) or self.suffix in (*layout.segmentation, layout.mask)


def find_subjects(
    folder: Path, layouts: Sequence[Layout], fallbacks: Sequence[Layout] = ()
) -> SearchResult:
    """The subjects in `folder`, which has one of `layouts`, else one of `fallbacks`.

    `folder` may hold the groups, one group or subjects, or be one subject's folder: the
    path of `folder` then has the first parts of the pattern.

    Raises:
        NoSubjectError: no path fits any of the layouts, and all folders could be read.
        InputError: there is no such folder, it cannot be read, or it fits several layouts.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    unreadable: dict[str, str] = {}
    patterns = [pattern for layout in [*layouts, *fallbacks] for pattern, _ in layout.patterns]
    depth = max(pattern.count("/") + 1 for pattern in patterns)
    paths = list(_walk(folder, depth, (), unreadable))
    if str(folder) in unreadable:
        raise InputError(unreadable[str(folder)])
    files = [path for path in paths if not is_synthetic(folder.joinpath(*path))]
    found = _search_layouts(folder, files, layouts) or _search_layouts(folder, files, fallbacks)
    if len(found) > 1:
        names = " and ".join(result.layout.name for result, _ in found)
        examples = " and ".join(str(example) for _, example in found)
        raise InputError(
            f"{folder} reads as the layouts {names}, as {examples} show: name one with "
            "config.data.layout"
        )
    if found:
        return replace(found[0][0], unreadable=unreadable)
    if not unreadable:
        raise NoSubjectError(_nothing_found(folder, [*layouts, *fallbacks]))
    unused_files = tuple(sorted(folder.joinpath(*path) for path in files))
    return SearchResult(layouts[0], [], {}, unreadable, unused_files)


def file_name(layout: Layout, subject: Subject, modality: str) -> Path:
    """The path that `modality` of `subject` would have, relative to the data's folder."""
    session = subject.name[len(subject.patient) + 1 :]
    values = {"group": subject.group, "subject": subject.name, "session": session}
    suffix = layout.suffixes[modality]
    patterns = layout.output_patterns or layout.patterns
    patterns = [pattern for pattern, fixed in patterns if fixed in ("", suffix)]
    if session and any("session" in fields_of(pattern) for pattern in patterns):
        values["subject"] = subject.patient
    values |= {"modality": suffix, "entities": ""}
    complete = (
        pattern
        for pattern in patterns
        if all(values[field] for field in fields_of(pattern) if field != "entities")
    )
    return Path(next(complete).format(**values))


def _walk(folder: Path, depth: int, above: Parts, unreadable: dict[str, str]) -> Iterator[Parts]:
    """The NIfTI files below `folder`, at most `depth` parts deep, in order.

    Adds each folder that cannot be read to `unreadable`.
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
        is_folder = os.path.isdir(entry.path)
        if is_folder and depth > 1:
            yield from _walk(Path(entry.path), depth - 1, path, unreadable)
        elif entry.name.endswith((".nii", ".nii.gz")) and not is_folder:
            yield path  # a broken link too: reading it will say so


def _search_layouts(
    folder: Path, files: list[Parts], layouts: Sequence[Layout]
) -> list[tuple[SearchResult, Path]]:
    """For each layout that `folder` has: what is in it, and an image that shows it."""
    found = []
    for layout in layouts:
        matches, conflicts = _match_files(folder, files, layout)
        known = [match for match in matches if match.is_known(layout)]
        selected = _select_by_entities(known, layout)
        if any(match.suffix == FOUR_D for match in selected):
            layout = _with_described_volumes(layout, folder)
        subjects, ambiguous = _build_subjects(selected, layout, conflicts)
        names = {subject.name for subject in subjects} | set(ambiguous)
        if names:
            used = [match for match in matches if match.subject in names]
            example = next(match.path for match in used if match.is_image(layout))
            unused_files = _unused_files(folder, files, used, layout)
            found.append((SearchResult(layout, subjects, ambiguous, {}, unused_files), example))
    return found


def _match_files(
    folder: Path, files: Sequence[Parts], layout: Layout
) -> tuple[list[Match], dict[str, str]]:
    """The `files` that fit a pattern, as the first pattern reads them.

    Also a sentence for each subject, by name, of whom two patterns read one file as two
    different images.
    """
    found: dict[Path, Match] = {}
    conflicts: dict[str, str] = {}
    images = set(layout.suffixes.values())
    for pattern, suffix in layout.patterns:
        for path, match in _fitting(folder, files, pattern, layout).items():
            other = _as_match(match, path, suffix, layout)
            first = found.setdefault(path, other)
            same = (first.subject, first.suffix) == (other.subject, other.suffix)
            if {first.suffix, other.suffix} <= images and not same:
                sentence = (
                    f"{path} reads as {first.suffix} of subject {first.subject} and as "
                    f"{other.suffix} of {other.subject}: make config.data.pattern tell "
                    "them apart"
                )
                conflicts |= {first.subject: sentence, other.subject: sentence}
    return [found[path] for path in sorted(found)], conflicts


def _fitting(
    folder: Path, files: Sequence[Parts], pattern: str, layout: Layout
) -> dict[Path, re.Match]:
    """The files that fit `pattern`, with as little of the path above `folder` as possible."""
    expression = _expression(pattern, layout)
    depth = pattern.count("/") + 1
    for num_above in range(min(depth, len(folder.parts))):
        above = folder.parts[len(folder.parts) - num_above :]
        matches = {
            folder.joinpath(*path): match
            for path in files
            if len(path) == depth - num_above
            and (match := expression.fullmatch("/".join([*above, *path])))
        }
        if matches:
            return matches
    return {}


def _expression(pattern: str, layout: Layout) -> re.Pattern:
    """The regular expression of `pattern`; a repeated field has one value."""
    suffixes = {*layout.suffixes.values(), *layout.segmentation, layout.mask} - {""}
    if layout.name == "bids":
        suffixes = {suffix.rsplit("_", 1)[-1] for suffix in suffixes}
    # The longest first: a file is never taken for a modality whose name ends another.
    choices = "|".join(map(re.escape, sorted(suffixes, key=len)[::-1]))
    expressions = layout.field_expressions | {"modality": choices}
    stem = pattern.removesuffix(".gz")
    text, seen = "", set()
    for literal, field, _, _ in string.Formatter().parse(stem):
        text += re.escape(literal)
        if field in seen:
            text += f"(?P={field})"
        elif field is not None:
            text += f"(?P<{field}>{expressions[field]})"
            seen.add(field)
    return re.compile(text + (r"(?:\.gz)?" if stem != pattern else ""))


def _as_match(match: re.Match, path: Path, suffix: str, layout: Layout) -> Match:
    fields = {field: value or "" for field, value in match.groupdict().items()}
    group, session = fields.get("group", ""), fields.get("session", "")
    subject = patient = fields["subject"]
    if session:
        subject = f"{patient}_{session}"
    if layout.visit_expression:
        patient = re.sub(layout.visit_expression, "", patient)
    suffix = suffix or _suffix(fields["modality"], fields.get("entities", ""))
    return Match(path, suffix, subject, group, patient, session)


def _suffix(suffix: str, entities: str) -> str:
    """`suffix` with the entities of BIDS that are part of it."""
    values = dict(part.split("-", 1) for part in entities.split("_") if part)
    if suffix == "mask":
        kinds = [values[key] for key in MASK_ENTITIES if key in values]
        return "_".join([*kinds, suffix])
    return f"ce-gadolinium_{suffix}" if "ce" in values else suffix


def _select_by_entities(matches: Sequence[Match], layout: Layout) -> list[Match]:
    """The matches that the layout's entities choose.

    None has another value of an entity; and none lacks the entity where another file of
    that subject and modality has it.
    """
    selected = [m for m in matches if _fits_entities(m.path, m.suffix, layout)]
    for entity in layout.entities:
        key = entity.split("-", 1)[0]
        having = {
            m
            for m in selected
            if key in _entities(m.path) and key in _wanted_entities(m.suffix, layout)
        }
        images = {(m.subject, m.suffix) for m in having}
        selected = [m for m in selected if m in having or (m.subject, m.suffix) not in images]
    return selected


def _fits_entities(path: Path, suffix: str, layout: Layout) -> bool:
    """Whether the file has none of the layout's entities with another value."""
    values = _entities(path)
    return all(values.get(k, v) == v for k, v in _wanted_entities(suffix, layout).items())


def _wanted_entities(suffix: str, layout: Layout) -> dict[str, str]:
    """The layout's entities by key, without those that are part of `suffix`."""
    wanted = dict(entity.split("-", 1) for entity in layout.entities)
    within = MASK_ENTITIES if suffix.endswith("mask") else ()
    return {key: value for key, value in wanted.items() if key not in within}


def _entities(path: Path) -> dict[str, str]:
    """The key-values in the name of a file of BIDS."""
    parts = path.name.split(".")[0].split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part)


def _unused_files(
    folder: Path, files: list[Parts], used: list[Match], layout: Layout
) -> tuple[Path, ...]:
    """The files that are not `used`, but for those that entities leave out."""
    # Masks of other structures than the brain are of no use, and no mistake.
    paths = {m.path for m in used if m.is_known(layout) or m.suffix.endswith("mask")}
    rest = sorted(folder.joinpath(*path) for path in files)
    return tuple(p for p in rest if p not in paths and _fits_entities(p, "", layout))


def _build_subjects(
    matches: list[Match], layout: Layout, conflicts: dict[str, str]
) -> tuple[list[Subject], dict[str, str]]:
    """The subjects of `matches` that have an image, by name.

    Also a sentence for each ambiguous one, by name: those of `conflicts`, and those that
    two folders or two files claim.
    """
    by_subject: dict[str, list[Match]] = defaultdict(list)
    by_patient: dict[str, list[Match]] = defaultdict(list)
    for match in matches:
        by_subject[match.subject.casefold()].append(match)
        by_patient[match.patient.casefold()].append(match)
    subjects, ambiguous = [], dict(conflicts)
    for _, files in sorted(by_subject.items()):
        names = sorted({match.subject for match in files})
        conflicting = [name for name in names if name in conflicts]
        if conflicting:
            ambiguous |= dict.fromkeys(names, conflicts[conflicting[0]])
        elif any(match.is_image(layout) for match in files):
            sentence = _ambiguity(files, by_patient[files[0].patient.casefold()], layout)
            if sentence:
                ambiguous |= dict.fromkeys(names, sentence)
            else:
                subjects.append(_build_subject(files, layout))
    return [subject for subject in subjects if subject.files], dict(sorted(ambiguous.items()))


def _ambiguity(files: list[Match], of_patient: list[Match], layout: Layout) -> str | None:
    """Why one name stands for two subjects, or two files for one image; else None.

    `files` share the name of a subject and `of_patient` that of a patient, but for upper
    and lower case.
    """
    first = files[0]
    others = [match for match in of_patient if match.patient != first.patient]
    others += [match for match in files if match.identity != first.identity]
    if others:
        paths = sorted([first.path, others[0].path])
        return f"subject {first.subject} is there twice: {paths[0]} and {paths[1]}"
    by_suffix: dict[str, Match] = {}
    for match in files:
        other = by_suffix.setdefault(match.suffix, match)
        if other is not match:
            choose = ", or choose with config.data.entities" if layout.name == "bids" else ""
            return (
                f"{other.path} and {match.path} are one image of subject "
                f"{match.subject}; keep one of them{choose}"
            )
    return None


def _build_subject(matches: list[Match], layout: Layout) -> Subject:
    paths = {match.suffix: match.path for match in matches}
    if layout.volume_indices:
        whole = paths.get(FOUR_D)
        files = dict.fromkeys(layout.volume_indices, whole) if whole else {}
    else:
        files = {name: paths[s] for name, s in layout.suffixes.items() if s in paths}
    return Subject(
        name=matches[0].subject,
        group=matches[0].group,
        patient=matches[0].patient,
        files=files,
        volume_indices={m: index for m, index in layout.volume_indices.items() if m in files},
        segmentation=next((paths[s] for s in layout.segmentation if s in paths), None),
        mask=paths.get(layout.mask) if layout.mask else None,
        tumour_values=layout.tumour_values,
        cavity_value=layout.cavity_value,
    )


def _with_described_volumes(layout: Layout, folder: Path) -> Layout:
    """`layout` with the volumes that a dataset.json of the folder describes.

    Raises:
        InputError: a volume has no number, or a modality has no volume while a volume has
            an unknown name.
    """
    notes = (parent / "dataset.json" for parent in (folder, folder.parent))
    note = next((path for path in notes if path.is_file()), None)
    content = read_json(note) if note else None
    names = content.get("modality") if isinstance(content, dict) else None
    if not isinstance(names, dict):
        return layout
    odd = [index for index in names if not re.fullmatch("[0-9]+", str(index))]
    if odd:
        raise InputError(f"{note} calls a volume {odd[0]!r}; wanted numbers from 0 on")
    indices = {contrast_of(str(name)): index for index, name in names.items()}
    lacking = [name for name in layout.volume_indices if contrast_of(name) not in indices]
    if lacking and (None in indices or len(lacking) == len(layout.volume_indices)):
        raise InputError(
            f"{note} names {', '.join(map(str, names.values()))}, and none of them is {lacking[0]}"
        )
    known = [name for name in layout.volume_indices if name not in lacking]
    return replace(layout, volume_indices={m: int(indices[contrast_of(m)]) for m in known})


def _nothing_found(folder: Path, layouts: Sequence[Layout]) -> str:
    """A sentence on what was looked for in `folder`, and what lies there."""
    tree = os.walk(folder)  # which passes over what it cannot read
    files = (Path(parent, name) for parent, _, names in tree for name in names)
    example = next(files, None)
    seen = f"for example {example.relative_to(folder)}" if example else "no files"
    if len(layouts) > 1:
        names = ", ".join(layout.name for layout in layouts)
        wanted = f"the layouts {names} (or set config.data.pattern)"
    else:
        patterns = " or ".join(pattern for pattern, _ in layouts[0].patterns)
        suffixes = ", ".join(layouts[0].suffixes.values())
        wanted = f"{patterns} with {{modality}} one of {suffixes}"
    entities = {entity for layout in layouts for entity in layout.entities}
    if entities:
        wanted += f", of config.data.entities {', '.join(sorted(entities))}"
    return f"{folder}: no subject found; looked for {wanted}, and saw {seen}"
