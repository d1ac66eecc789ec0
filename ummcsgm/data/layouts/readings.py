"""A file's path, read as the patterns of a layout: whose it is, and which modality."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ummcsgm.data.layouts.naming import FOUR_D, Layout

WITHIN = ("label", "desc")  # entities of BIDS that say which mask a mask is


@dataclass(frozen=True)
class Reading:
    """A file whose path reads as a pattern of the layout does."""

    path: Path
    word: str  # what stands for {modality}
    name: str  # of the subject
    home: tuple[str, str, str]  # group, patient and session


def read_paths(
    folder: Path, files: Sequence[tuple[str, ...]], layout: Layout
) -> tuple[list[Reading], dict[str, str]]:
    """The `files` below `folder` that read as a pattern does, as the first one says.

    What a pattern wants above `folder` is read from its own path, where the pattern
    finds nothing otherwise. Also why a file says nothing of the subjects, by name,
    whose it may be: two patterns make two images of it.
    """
    found: dict[Path, Reading] = {}
    refused: dict[str, str] = {}
    for pattern, word in layout.patterns:
        for path, match in _matches(folder, files, pattern, word, layout).items():
            other = _reading(match, path, word, layout)
            one = found.setdefault(path, other)
            if _unlike(one, other, layout):
                sentence = (
                    f"{path} reads as {one.word} of subject {one.name} and as "
                    f"{other.word} of {other.name}: make config.data.pattern tell "
                    "them apart"
                )
                refused |= {one.name: sentence, other.name: sentence}
    return [found[path] for path in sorted(found)], refused


def is_image(reading: Reading, layout: Layout) -> bool:
    """Whether it is one of the layout's modalities, or holds all of them."""
    return reading.word in (*layout.words.values(), FOUR_D)


def is_meant(reading: Reading, layout: Layout) -> bool:
    """Whether it is an image, a segmentation or the mask of the layout."""
    return is_image(reading, layout) or (reading.word in (*layout.segmentation, layout.mask))


def is_wanted(path: Path, word: str, layout: Layout) -> bool:
    """Whether the file has none of the layout's entities with another value."""
    values = _entities(path)
    return all(values.get(k, v) == v for k, v in _wanted(word, layout).items())


def chosen(readings: Sequence[Reading], layout: Layout) -> list[Reading]:
    """The readings that the layout's entities choose, an image's as the first can.

    Never one with another value; and none without the entity, where a file of that
    subject and modality has it.
    """
    kept = [one for one in readings if is_wanted(one.path, one.word, layout)]
    for entity in layout.entities:
        key = entity.split("-", 1)[0]
        having = {
            one for one in kept if key in _entities(one.path) and key in _wanted(one.word, layout)
        }
        images = {(one.name, one.word) for one in having}
        kept = [o for o in kept if o in having or (o.name, o.word) not in images]
    return kept


def _wanted(word: str, layout: Layout) -> dict[str, str]:
    """The layout's entities by key, without those that `word` itself has."""
    wanted = dict(entity.split("-", 1) for entity in layout.entities)
    within = WITHIN if word.endswith("mask") else ()
    return {key: value for key, value in wanted.items() if key not in within}


def _entities(path: Path) -> dict[str, str]:
    """The key-values in the name of a file of BIDS."""
    parts = path.name.split(".")[0].split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part)


def _matches(
    folder: Path, files: Sequence[tuple[str, ...]], pattern: str, word: str, layout: Layout
) -> dict[Path, re.Match]:
    """The files that read as `pattern`, with as little above `folder` as it takes."""
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
        if matches:
            return matches
    return {}


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


def _reading(match: re.Match, path: Path, word: str, layout: Layout) -> Reading:
    fields = {field: value or "" for field, value in match.groupdict().items()}
    group, session = fields.get("group", ""), fields.get("session", "")
    name = patient = fields["subject"]
    if session:
        name = f"{patient}_{session}"
    if layout.visit:
        patient = re.sub(layout.visit, "", patient)
    word = word if word else _word(fields["modality"], fields.get("entities", ""))
    return Reading(path, word, name, (group, patient, session))


def _unlike(one: Reading, other: Reading, layout: Layout) -> bool:
    """Whether both are images, and not the same one."""
    images = {one.word, other.word} <= set(layout.words.values())
    return images and (one.name, one.word) != (other.name, other.word)


def _word(suffix: str, entities: str) -> str:
    """What stands for the modality; in BIDS some entities are part of it."""
    values = dict(part.split("-", 1) for part in entities.split("_") if part)
    if suffix == "mask":
        kinds = [values[key] for key in WITHIN if key in values]
        return "_".join([*kinds, suffix])
    return f"ce-gadolinium_{suffix}" if "ce" in values else suffix
