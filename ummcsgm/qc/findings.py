"""What an examination hands on: findings, and what cohorts are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEVERITIES = ("stop", "warn", "note")  # would stop or poison a run; may; is to know
FEWEST = 2  # modalities with which a subject can be trained on


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do about it.

    `subject`, `modality` are "" and `path` is None where it is not about one of these.
    """

    severity: str  # one of SEVERITIES
    subject: str
    modality: str  # or "mask" or "segmentation"
    path: Path | None
    code: str
    sentence: str


@dataclass(frozen=True)
class Examination:
    """What was found in one subject, and what it is compared with others by."""

    findings: list[Finding]
    digests: dict[str, str]  # by modality, for those that can be trained on
    pixel: tuple[float, float] | None  # dy, dx in mm; None where nothing was read
