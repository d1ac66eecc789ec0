"""What was fitted on validation subjects, where draws are made of other subjects.

`evaluate` leaves it in the workdir beside the checkpoint that it was fitted with.
"""

import pathlib
from typing import NamedTuple

from ummcsgm.answer import Trained
from ummcsgm.files import read_json
from ummcsgm.plans import Scoring
from ummcsgm.posterior import check_rho
from ummcsgm.types import InputError

FILE = "calibration.json"


class Calibration(NamedTuple):
    """`fits` has, by modality, the factor on the spread of draws and how well it is
    known; `rho` is how their noise correlates along z."""

    fits: dict[str, dict]
    rho: float


def read_calibration(
    workdir: pathlib.Path, trained: Trained, sampler: str, scoring: Scoring
) -> Calibration:
    """What was fitted for these very parameters: nothing, and 0, if nothing was.

    Factors are those of one sampler and its number of steps: other draws have none.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / FILE
    told = read_json(path) if path.is_file() else {"parameters_sha256": None}
    try:
        if told["parameters_sha256"] != trained.digest:
            return Calibration({}, 0.0)
        fits = {name: dict(fit) for name, fit in told["fits"].items()}
        for fit in fits.values():
            float(fit["factor"])
        rho = float(told["rho"])
        check_rho(rho)
        same = (told["sampler"], told["few"]) == (sampler, scoring.few)
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path} is damaged: --mode evaluate makes it again."
        ) from None
    return Calibration(fits if same else {}, rho)
