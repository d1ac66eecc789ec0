"""What one subject's answers are worth, and where it is kept.

Each subject's numbers lie in the workdir as soon as they are there, under a key of what
they depend on: an evaluation that was stopped continues where it was.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ummcsgm.data.layouts.naming import Subject
from ummcsgm.types import Array
from ummcsgm.utils.atomic_io import UNREADABLE, write_atomic
from ummcsgm.utils.provenance import code_digest


@dataclasses.dataclass(frozen=True)
class Marks:
    """What one subject's answers are worth, and what is shown of them.

    A row has subject, group, method, missing, modality, slices and the metrics; a
    record the numbers of `ensembles.judge` and draws for `method`, or those of
    `slabs.measure`. `panels` are by method, `pictures` by what they show, [M, ...]
    each; empty if nothing is shown.
    """

    rows: list[dict]
    records: list[dict]
    panels: dict[str, Array]
    pictures: dict[str, Array]


def by_name(subjects: Sequence[Subject], marks: Sequence[Marks]) -> dict[str, Marks]:
    """The marks of each subject, in their order."""
    return {one.name: own for one, own in zip(subjects, marks, strict=True)}


def digest_of(*depends: object) -> str:
    """Changes when any of `depends`, values that JSON has, does."""
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


def kept(path: pathlib.Path, key: list, subject: Subject, ask: Callable[[], Marks]) -> Marks:
    """The subject's marks: those at `path` if they answer the same, else what `ask`
    gives, which is then kept there."""
    files = [*subject.files.values(), *([subject.mask] if subject.mask else [])]
    times = [file.stat().st_mtime_ns for file in files]
    key = json.dumps([code_digest(), *key, subject.name, times])
    with contextlib.suppress(*UNREADABLE, KeyError):  # copied in part: ask again
        with np.load(path) as there:
            if str(there["key"]) == key:
                return Marks(
                    json.loads(str(there["rows"])),
                    json.loads(str(there["records"])),
                    {n[6:]: there[n] for n in there.files if n.startswith("panel_")},
                    {n[8:]: there[n] for n in there.files if n.startswith("picture_")},
                )
    marks = ask()
    content = io.BytesIO()
    np.savez_compressed(
        content,
        key=key,
        rows=json.dumps(marks.rows),
        records=json.dumps(marks.records),
        **{f"panel_{name}": array for name, array in marks.panels.items()},
        **{f"picture_{name}": array for name, array in marks.pictures.items()},
    )
    write_atomic(path, content.getvalue())
    return marks
