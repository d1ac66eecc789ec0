"""Where a subject's files lie: BraTS 2019, and patterns of one's own.

A pattern is a relative path with the fields {group}, {subject} and {modality}; a
file belongs to a subject when its whole path reads as the pattern does.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ummcsgm.data.nifti import is_synthetic
from ummcsgm.types import InputError

BRATS19_PATTERN = "{group}/{subject}/{subject}_{modality}.nii.gz"
BRATS19_TOKENS = {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2"}
BRATS19_GROUPS = ("HGG", "LGG")
SEGMENTATION = "seg"
FIELDS = ("group", "subject", "modality")


@dataclass(frozen=True)
class Layout:
    """How files are named, and what stands in the names for each modality."""

    pattern: str
    tokens: dict[str, str]  # modality to {modality}, in the order of the modalities
    segmentation: str  # what stands for the segmentation, "" where there is none
    groups: tuple[str, ...]  # what {group} may be; () for anything


@dataclass(frozen=True)
class Subject:
    """One subject's files, for the modalities that were found."""

    name: str
    group: str  # "" where the subject lies in none
    files: dict[str, Path]
    segmentation: Path | None


def brats19(modalities: Sequence[str]) -> Layout:
    """The layout of BraTS 2018 and 2019, for some of flair, t1, t1c and t2.

    Raises:
        InputError: a modality is not one of these four.
    """
    _check_modalities(modalities)
    for modality in modalities:
        if modality not in BRATS19_TOKENS:
            raise InputError(
                f"config.data.modalities has {modality!r}; the layout brats19 knows "
                f"{', '.join(BRATS19_TOKENS)}"
            )
    tokens = {modality: BRATS19_TOKENS[modality] for modality in modalities}
    return Layout(BRATS19_PATTERN, tokens, SEGMENTATION, BRATS19_GROUPS)


def flat(modalities: Sequence[str], pattern: str) -> Layout:
    """The layout of `pattern`, in which each modality stands under its own name.

    Raises:
        InputError: the pattern lacks {subject} or {modality}, has an unknown field,
            or does not end in .nii or .nii.gz.
    """
    _check_modalities(modalities)
    fields = _fields(pattern)
    for field in fields:
        if field not in FIELDS:
            raise InputError(
                f"config.data.pattern {pattern!r} has the field {{{field}}}; it may "
                "have {group}, {subject} and {modality}"
            )
    for field in ("subject", "modality"):
        if field not in fields:
            raise InputError(f"config.data.pattern {pattern!r} lacks {{{field}}}")
    if not pattern.endswith((".nii", ".nii.gz")):
        raise InputError(f"config.data.pattern {pattern!r} must end in .nii.gz or .nii")
    return Layout(pattern, {name: name for name in modalities}, SEGMENTATION, ())


def find_subjects(folder: Path, layout: Layout) -> list[Subject]:
    """The subjects under `folder`, by name, each with the files that it has.

    `folder` may hold the groups, one group, subjects, or be one subject's own
    folder: what the pattern wants above is then read from the folder's own path.

    Raises:
        InputError: there is no such folder or no subject in it; one name stands for
            two subjects; or one modality lies there twice.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: there is no such folder")
    found = next(filter(None, _readings(Path(folder), layout)), None)
    subjects = _subjects(found, layout) if found else []
    if not subjects:
        raise InputError(_nothing_found(Path(folder), layout))
    return subjects


def file_name(layout: Layout, subject: Subject, modality: str) -> Path:
    """Where `modality` of `subject` would lie, relative to the folder of the data."""
    pattern = layout.pattern if subject.group else _ungrouped(layout.pattern)
    token = layout.tokens[modality]
    return Path(
        pattern.format(group=subject.group, subject=subject.name, modality=token)
    )


def require_all(subjects: Sequence[Subject], layout: Layout) -> None:
    """Every subject has a file for every modality of `layout`.

    Raises:
        InputError: one has not; the message names the first such file.
    """
    for subject in subjects:
        for modality in layout.tokens:
            if modality not in subject.files:
                raise InputError(
                    f"subject {subject.name} has no {modality}: "
                    f"{file_name(layout, subject, modality)} is not there"
                )


def _check_modalities(modalities: Sequence[str]) -> None:
    """`modalities` are some names, each once, and none is the segmentation's."""
    names = list(modalities)
    if not names or len(set(names)) < len(names) or SEGMENTATION in names:
        raise InputError(
            f"config.data.modalities is {names}; wanted one name or more, each once "
            f"and none of them {SEGMENTATION!r}"
        )
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s+,/\\{}]+", name):
            raise InputError(
                f"config.data.modalities has {name!r}; a name has no space and none of "
                "+ , / \\ { }"
            )


def _fields(pattern: str) -> list[str]:
    """The names of the fields of `pattern`, as often as they stand in it."""
    try:
        parsed = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise InputError(f"config.data.pattern {pattern!r}: {error}") from None
    return [field for _, field, _, _ in parsed if field is not None]


def _ungrouped(pattern: str) -> str:
    """`pattern` without the folder of the group."""
    return "/".join(part for part in pattern.split("/") if part != "{group}")


def _readings(folder: Path, layout: Layout) -> Iterator[list[tuple[re.Match, Path]]]:
    """The files that read as the pattern does, for each place `folder` may have."""
    folder = Path(os.path.abspath(folder))
    for pattern in dict.fromkeys([layout.pattern, _ungrouped(layout.pattern)]):
        expression = _expression(pattern, layout)
        depth = pattern.count("/") + 1
        for above in range(min(depth, len(folder.parts))):
            own = folder.parts[len(folder.parts) - above :]
            files = sorted(folder.glob("/".join(["*"] * (depth - above))))
            names = [
                "/".join([*own, *file.relative_to(folder).parts]) for file in files
            ]
            matches = map(expression.fullmatch, names)
            pairs = zip(matches, files, strict=True)
            yield [(match, file) for match, file in pairs if match]


def _expression(pattern: str, layout: Layout) -> re.Pattern:
    """What matches the paths that `pattern` stands for; a field is the same twice."""
    # The longest first: a file is never taken for a modality whose name ends another.
    tokens = sorted([*layout.tokens.values(), layout.segmentation], key=len)[::-1]
    choices = {
        "group": _any_of(layout.groups) if layout.groups else r"[^/.][^/]*",
        "subject": r"[^/.][^/]*?",
        "modality": _any_of([token for token in tokens if token]),
    }
    stem = pattern.removesuffix(".gz")
    text, seen = "", set()
    for literal, field, _, _ in string.Formatter().parse(stem):
        text += re.escape(literal)
        if field is not None:
            text += (
                f"(?P={field})" if field in seen else f"(?P<{field}>{choices[field]})"
            )
            seen.add(field)
    return re.compile(text + (r"(?:\.gz)?" if stem != pattern else ""))


def _any_of(words: Sequence[str]) -> str:
    """An expression that matches any of `words`, the first of them first."""
    return "|".join(re.escape(word) for word in words)


def _subjects(found: list[tuple[re.Match, Path]], layout: Layout) -> list[Subject]:
    """The subjects of `found` that have an image, each once, by name."""
    files: dict[str, dict[str, Path]] = {}
    groups: dict[str, str] = {}
    for match, path in found:
        if is_synthetic(path):
            continue  # an earlier answer is not a scan
        name, token = match["subject"], match["modality"]
        group = match.groupdict().get("group") or ""
        own = files.setdefault(name, {})
        if groups.setdefault(name, group) != group:
            other = next(iter(own.values()))
            raise InputError(f"subject {name} is there twice: {other} and {path}")
        if token in own:
            raise InputError(f"{own[token]} and {path} are one image; keep one of them")
        own[token] = path
    subjects = [_subject(n, groups[n], files[n], layout) for n in sorted(files)]
    return [subject for subject in subjects if subject.files]


def _subject(name: str, group: str, own: dict[str, Path], layout: Layout) -> Subject:
    """The subject with the files `own`, by token."""
    tokens = layout.tokens.items()
    images = {modality: own[token] for modality, token in tokens if token in own}
    return Subject(name, group, images, own.get(layout.segmentation))


def _nothing_found(folder: Path, layout: Layout) -> str:
    """A sentence on what was looked for in `folder`, and what lies there."""
    files = (path for path in folder.rglob("*") if path.is_file())
    example = next(files, None)
    seen = f"for example {example.relative_to(folder)}" if example else "no files"
    tokens = ", ".join(layout.tokens.values())
    return (
        f"{folder}: no subject found; looked for {layout.pattern} with {{modality}} "
        f"one of {tokens}, and saw {seen}"
    )
