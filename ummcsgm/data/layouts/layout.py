"""A layout (how a data set names its files) and a subject (the files that it has)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ummcsgm.types import InputError

SEGMENTATION = "seg"
FOUR_D = "4-D"  # the suffix of a file that holds every modality
NAME_EXPRESSION = r"[^/.][^/]*?"  # the name of a subject or session
TUMOUR_VALUES = (1, 2, 4)  # core, oedema, enhancing, as in BraTS 2018 to 2021

# What users and data sets call one contrast.
CONTRASTS = {
    "flair": ("flair", "t2f"),
    "t1": ("t1", "t1n", "t1w"),
    "t1c": ("t1c", "t1ce", "t1gd"),
    "t2": ("t2", "t2w"),
    "pd": ("pd", "pdw"),
}


@dataclass(frozen=True)
class Layout:
    """How the files of a data set are named.

    A pattern is a relative path with fields such as {subject} and {modality}. It comes with
    the suffix that all of its files have for {modality}, "" if the path has that field.
    """

    name: str
    patterns: tuple[tuple[str, str], ...]
    suffixes: dict[str, str]  # modality -> {modality}, in the order of the modalities
    field_expressions: dict[str, str]  # regular expressions of the other fields
    mask: str  # the suffix of a brain mask, "" where there is none
    output_patterns: tuple[tuple[str, str], ...] = ()  # of completed files; () as `patterns`
    segmentation: tuple[str, ...] = (SEGMENTATION,)  # suffixes, the first found counts
    volume_indices: dict[str, int] = field(default_factory=dict)  # in a 4-D file of all
    visit_expression: str = ""  # the part of a subject's name that is not the patient's
    entities: tuple[str, ...] = ()  # key-value is wanted; "key-" wants files without the key
    tumour_values: tuple[int, int, int] = TUMOUR_VALUES
    cavity_value: int | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that the layout knows."""
        return tuple(self.suffixes)


@dataclass(frozen=True)
class Subject:
    """The files of one subject, for the modalities that were found.

    A `patient` who was scanned several times is several subjects. `volume_indices` has the
    index of each modality that lies in a 4-D file.
    """

    name: str
    group: str  # "" where the subject lies in none
    patient: str
    files: dict[str, Path]
    volume_indices: dict[str, int]
    segmentation: Path | None
    mask: Path | None
    tumour_values: tuple[int, int, int] = TUMOUR_VALUES  # in the segmentation
    cavity_value: int | None = None  # where a tumour was resected, which is no tumour


def contrast_of(modality: str) -> str | None:
    """The contrast in CONTRASTS that a user's name of a modality means, or None."""
    matching = (c for c, names in CONTRASTS.items() if modality.casefold() in names)
    return next(matching, None)


def check_modalities(modalities: Sequence[str]) -> None:
    """Raises InputError unless `modalities` are usable names, each once."""
    names = list(modalities)
    if not names or len(set(names)) < len(names) or SEGMENTATION in names:
        raise InputError(
            f"config.data.modalities is {names}; wanted one name or more, each once "
            f"and none of them {SEGMENTATION!r}"
        )
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s+,/\\{}=;]+", name):
            raise InputError(
                f"config.data.modalities has {name!r}; a name has no space and none of "
                "+ , / \\ { } = ;"
            )


def check_entities(entities: Sequence[str]) -> None:
    """Raises InputError unless each of config.data.entities is key-value or key-."""
    for entity in entities:
        if not re.fullmatch(r"[A-Za-z]+-[A-Za-z0-9+]*", entity):
            raise InputError(
                f"config.data.entities has {entity!r}; wanted key-value, like run-1, "
                "or key- for files without it, like desc-"
            )
