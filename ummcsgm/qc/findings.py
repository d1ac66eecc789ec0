"""Problems of a file or a subject, and the findings that a user reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ummcsgm.data.layouts.layout import Subject

SEVERITIES = ("stop", "warn", "note")  # would stop or poison a run; may; is to know
MIN_MODALITIES = 2  # with which a subject can be trained on


@dataclass(frozen=True)
class Problem:
    """Something wrong; `text` continues a sentence that begins with the file or subject."""

    severity: str  # one of SEVERITIES
    code: str
    text: str


NamedProblems = list[tuple[str, Problem]]  # modality, "mask", "segmentation" or "" -> problem


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do about it.

    `subject` and `modality` are "" and `path` is None if it does not concern one of these.
    """

    severity: str  # one of SEVERITIES
    subject: str
    modality: str  # or "mask" or "segmentation"
    path: Path | None
    code: str
    sentence: str


@dataclass(frozen=True)
class Examination:
    """The findings on one subject, and what it is compared with other subjects by."""

    subject: Subject
    findings: list[Finding]
    digests: dict[str, str]  # by modality, for those that can be trained on
    pixel: tuple[float, float] | None  # dy, dx in mm; None where nothing was read
