"""The patterns of one's own, as config.data.pattern has them, and what they must have.

A pattern is a relative path with the fields {group}, {subject}, {session} and
{modality}. Either one pattern reads {modality}, or each modality has its own, as in
"t1=anat/{subject}_T1.nii.gz; pd=pd/{subject}.nii.gz".
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from ummcsgm.types import InputError

FIELDS = ("group", "subject", "session", "modality")


def own_patterns(
    pattern: str, modalities: Sequence[str], others: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The patterns in `pattern`, each with its word for {modality}, "" to read it.

    Each of `modalities` has one, and each of `others` may. Those with a folder for the
    group are there without it too.

    Raises:
        InputError: a pattern lacks {subject} or {modality}, has an unknown field, does
            not end in .nii or .nii.gz, or is given for no modality or twice.
    """
    patterns = _divided(pattern, modalities, others)
    for one, _ in patterns:
        _check_pattern(one)
    levels = [{"group", "session"} & set(fields_of(one)) for one, _ in patterns]
    if any(level != levels[0] for level in levels):
        raise InputError(
            f"config.data.pattern {pattern!r}: all of its patterns need the same of "
            "{group} and {session}"
        )
    ungrouped = [(_ungrouped(one), word) for one, word in patterns]
    return tuple(dict.fromkeys([*patterns, *ungrouped]))


def fields_of(pattern: str) -> list[str]:
    """The names of the fields of `pattern`, as often as they stand in it."""
    try:
        parsed = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise InputError(f"config.data.pattern {pattern!r}: {error}") from None
    return [field for _, field, _, _ in parsed if field is not None]


def _divided(
    pattern: str, modalities: Sequence[str], others: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The user's patterns as they stand, each with its word for {modality}."""
    if "{modality}" in pattern or "=" not in pattern:
        if "{modality}" not in pattern and "{subject}" in pattern:
            raise InputError(f"config.data.pattern {pattern!r} lacks {{modality}}")
        return ((pattern, ""),)
    pairs = [part.partition("=") for part in pattern.split(";") if part.strip()]
    patterns = {name.strip(): own.strip() for name, _, own in pairs}
    odd = [name for name in modalities if name not in patterns]
    odd += [name for name in patterns if name not in (*modalities, *others)]
    if odd or len(patterns) < len(pairs):
        raise InputError(
            f"config.data.pattern {pattern!r}: wanted one name=pattern for each of "
            f"{', '.join(modalities)}, divided by ';'"
        )
    return tuple((own, name) for name, own in patterns.items())


def _check_pattern(pattern: str) -> None:
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


def _ungrouped(pattern: str) -> str:
    """`pattern` without the folder of the group."""
    return "/".join(part for part in pattern.split("/") if part != "{group}")
