"""What decides whether a phantom's tumour enhances: drawn, written beside the scans, read back.

The uptake of gadolinium is drawn independently of everything else, so the law of the pattern given
the other contrasts is PATTERNS for every subject. The grade is not independent of it: it
follows from the finished tumour.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from ummcsgm.data.phantom.tumour import (
    AMOUNT,
    NONE,
    PATTERNS,
    draw_dose,
    draw_necrotic,
    draw_seat,
)
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic


@dataclasses.dataclass(frozen=True)
class PhantomTruth:
    """What was drawn of one tumour, and the laws of it that hold given everything else.

    Gadolinium of `amount` mM is taken up in the `pattern` drawn with `probabilities`; `amount_law`
    has the lowest and the highest of a log-uniform law. The tumour sits at `centre` with a
    `radius`, in mm of the atlas (right, front, up) before the head is scaled and bent.
    """

    pattern: str
    probabilities: dict[str, float]
    amount: float
    amount_law: tuple[float, float]
    necrotic: bool
    centre: tuple[float, float, float]
    radius: float

    @property
    def enhances(self) -> bool:
        """Whether the tumour takes up any gadolinium."""
        return self.pattern != NONE

    @property
    def probability(self) -> float:
        """P(it enhances | everything else)."""
        return 1 - self.probabilities[NONE]


def draw_truth(keys: dict[str, np.random.Generator]) -> PhantomTruth:
    """The truth of the subject that fresh streams describe, without its images."""
    seat, necrotic = draw_seat(keys["tumour"]), draw_necrotic(keys["tumour"])
    dose = draw_dose(keys["gadolinium"])
    return PhantomTruth(
        dose.pattern, dict(PATTERNS), dose.amount, AMOUNT, necrotic, seat.centre, seat.radius
    )


def truth_path(folder: Path) -> Path:
    """Where the truth of the subject in `folder` lies; no layout takes it for a scan."""
    return folder / f"{folder.name}_phantom.json"


def write_truth(path: Path, truth: PhantomTruth) -> None:
    """Writes the truth as JSON."""
    write_atomic(path, json.dumps(dataclasses.asdict(truth), indent=1))


def read_truth(folder: Path) -> PhantomTruth | None:
    """The truth of the phantom subject in `folder`; None where there is none, as of patients.

    Raises:
        InputError: the file is damaged.
    """
    path = truth_path(Path(folder))
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        truth = PhantomTruth(**content)
        amount_law, centre = tuple(map(float, truth.amount_law)), tuple(map(float, truth.centre))
        total = sum(truth.probabilities.values())
        if truth.pattern not in truth.probabilities or NONE not in truth.probabilities:
            raise ValueError(f"it has no probability of {truth.pattern!r} or of {NONE!r}")
        if min(truth.probabilities.values()) < 0 or abs(total - 1) > 1e-6:
            raise ValueError("its probabilities are no law")
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no phantom's truth ({error}); remove it.") from None
    return dataclasses.replace(truth, amount_law=amount_law, centre=centre)
