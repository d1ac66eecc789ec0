"""The layout that config.data.pattern describes.

A pattern is a relative path with the fields {group}, {subject}, {session} and
{modality}. Either one pattern reads {modality}, or each modality has a pattern, as in
"t1=anat/{subject}_T1.nii.gz; pd=pd/{subject}.nii.gz".
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from ummcsgm.data.layouts.layout import NAME_EXPRESSION, SEGMENTATION, Layout, check_modalities
from ummcsgm.types import InputError

FIELDS = ("group", "subject", "session", "modality")


def flat(modalities: Sequence[str], pattern: str, mask: str) -> Layout:
    """The layout of the user's `pattern`, each modality under its own name.

    The segmentation and the mask may have a pattern too. A pattern with a folder for the
    group also reads files without that folder.

    Raises:
        InputError: there are no modalities; or a pattern lacks {subject} or {modality}, has
            an unknown field, does not end in .nii or .nii.gz, or is given for no modality
            or twice.
    """
    check_modalities(modalities)
    patterns = _split(pattern, modalities, (SEGMENTATION, mask) if mask else (SEGMENTATION,))
    for path, _ in patterns:
        _check(path)
    folders = [{"group", "session"} & set(fields_of(path)) for path, _ in patterns]
    if any(fields != folders[0] for fields in folders):
        raise InputError(
            f"config.data.pattern {pattern!r}: all of its patterns need the same of "
            "{group} and {session}"
        )
    ungrouped = [
        ("/".join(part for part in path.split("/") if part != "{group}"), suffix)
        for path, suffix in patterns
    ]
    fields = {"group": r"[^/.][^/]*", "session": NAME_EXPRESSION, "subject": NAME_EXPRESSION}
    suffixes = {name: name for name in modalities}
    return Layout("flat", tuple(dict.fromkeys([*patterns, *ungrouped])), suffixes, fields, mask)


def fields_of(pattern: str) -> list[str]:
    """The names of the fields of `pattern`, in order, repeated ones too."""
    try:
        parsed = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise InputError(f"config.data.pattern {pattern!r}: {error}") from None
    return [field for _, field, _, _ in parsed if field is not None]


def _split(
    pattern: str, modalities: Sequence[str], optional: Sequence[str]
) -> list[tuple[str, str]]:
    """The user's patterns with their suffixes: one for each modality, or one for all."""
    if "{modality}" in pattern or "=" not in pattern:
        if "{modality}" not in pattern and "{subject}" in pattern:
            raise InputError(f"config.data.pattern {pattern!r} lacks {{modality}}")
        return [(pattern, "")]
    pairs = [part.partition("=") for part in pattern.split(";") if part.strip()]
    paths = {name.strip(): path.strip() for name, _, path in pairs}
    missing = [name for name in modalities if name not in paths]
    unknown = [name for name in paths if name not in (*modalities, *optional)]
    if missing or unknown or len(paths) < len(pairs):
        raise InputError(
            f"config.data.pattern {pattern!r}: wanted one name=pattern for each of "
            f"{', '.join(modalities)}, divided by ';'"
        )
    return [(path, name) for name, path in paths.items()]


def _check(pattern: str) -> None:
    fields = fields_of(pattern)
    for field in fields:
        if field not in FIELDS:
            raise InputError(
                f"config.data.pattern {pattern!r} has the field {{{field}}}; it may "
                "have {group}, {subject}, {session} and {modality}"
            )
    if "subject" not in fields:
        raise InputError(f"config.data.pattern {pattern!r} lacks {{subject}}")
    if not pattern.endswith((".nii", ".nii.gz")):
        raise InputError(f"config.data.pattern {pattern!r} must end in .nii.gz or .nii")
